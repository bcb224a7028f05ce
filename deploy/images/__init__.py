"""Build and test both images with Debian's buildah, without a daemon, a registry or a virtual machine."""
