"""hal bench: what each backend's kernels take on given shapes, beside peers and beside the limits of the device."""
