"""AMD: AMD SMI or sysfs, the rules of ROCr and HIP, and what the doctor must know."""
