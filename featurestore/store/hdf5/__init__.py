"""Features in one file of HDF5: netCDF-4, contiguous ragged arrays of CF, chunked by layer. It never changes."""
