#!/usr/bin/env bash
# Removes the cluster of up.sh with everything in it.
set -euo pipefail
kind delete cluster --name cmcl
