#!/usr/bin/env bash
# Delete the cluster of up.sh.
set -euo pipefail
kind delete cluster --name cmcl
