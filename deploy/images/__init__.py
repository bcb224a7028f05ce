"""Both images, built and tried with Debian's buildah: no daemon, no registry, no virtual machine."""
