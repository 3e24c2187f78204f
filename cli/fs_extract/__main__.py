"""`python -m fs_extract` is `fs-extract`."""

from fs_extract.main import main

main()
