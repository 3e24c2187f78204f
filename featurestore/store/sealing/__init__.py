"""Moving tracks from their folders into bundles, and back."""
