"""Programs compiled for accelerators that aren't there, and what compilers say."""
