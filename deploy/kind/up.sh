#!/usr/bin/env bash
# Run cmcl on a kind cluster, from sources to `helm test`. Needs docker, kind, kubectl, helm, openssl, and
# 16 GiB of memory. A second run continues with the existing cluster; down.sh removes it.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=$(sed -n 's/^appVersion: *"\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' helm/Chart.yaml)
kubectl=(kubectl --context kind-cmcl)
helm=(helm --kube-context kind-cmcl)

kind get clusters | grep --quiet --line-regexp cmcl || kind create cluster --config deploy/kind/cluster.yaml

docker build --target service --build-arg VERSION="$version" --tag "cmcl-service:$version" .
docker build --target worker --build-arg VERSION="$version" --build-arg WORKER_LOCK=worker-cpu.lock \
  --tag "cmcl-worker:$version" .
kind load docker-image --name cmcl "cmcl-service:$version" "cmcl-worker:$version"

"${helm[@]}" upgrade --install kuberay-operator kuberay-operator --version 1.7.0 --wait \
  --repo https://ray-project.github.io/kuberay-helm --namespace kuberay --create-namespace

"${kubectl[@]}" apply -f deploy/kind/namespace.yaml
"${kubectl[@]}" -n cmcl get secret cmcl-admin >/dev/null 2>&1 ||
  "${kubectl[@]}" -n cmcl create secret generic cmcl-admin --from-literal=admin-key="$(openssl rand -hex 32)"

"${helm[@]}" upgrade --install cmcl helm --namespace cmcl --wait --timeout 15m --values deploy/environments/laptop.yaml
"${helm[@]}" test cmcl --namespace cmcl --logs --timeout 20m
