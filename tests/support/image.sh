#!/usr/bin/env bash
# Tries an image: image.sh ENGINE IMAGE. Without network, on a read-only root, as the user it names, without capabilities.
#
# The quickstart runs twice and has to give the same bytes: weights, cache, losses. SIGTERM has to end an extract with
# exit code 143, and the same command has to go on from there to the bytes of an undisturbed one.
set -euo pipefail
engine=$1 image=$2 volume=kdtool-test-$$
trap '"$engine" rm --force "$volume" > /dev/null 2>&1 || true; "$engine" volume rm --force "$volume" > /dev/null' EXIT
"$engine" volume create "$volume" > /dev/null

in_image() {
  "$engine" run --network none --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
    --volume "$volume:/runs" "$@"
}
kdtool() { in_image --rm "$image" "$@"; }
shell() { in_image --rm --entrypoint sh "$image" -euc "$1"; }
fail() { echo "$image: $1" >&2; exit 1; }

# Of weights and caches; other files tell of times and folders.
digests() {
  shell "cd /runs/$1 && find . -type f \( -name '*.safetensors' -o -name zarr.json -o -name manifest.json -o -path '*/c/*' \) \
    -exec sha256sum {} + | sort -k 2"
}

test "$(shell 'id -u')" = 1000 || fail "it runs as another user than 1000"
"$engine" inspect --format '{{json .Config.Labels}}' "$image"
kdtool doctor
kdtool quickstart --folder /runs/one
kdtool quickstart --quiet --folder /runs/two > /dev/null
test "$(digests one)" = "$(digests two)" || fail "two runs of the quickstart gave other bytes"
echo "$image: two runs of the quickstart gave the same $(digests one | wc -l) files"

in_image --detach --name "$volume" "$image" extract --folder /runs/two --cache /runs/three.zarr --views 24 > /dev/null
until shell 'test -s /runs/three.zarr/journal.jsonl' 2> /dev/null; do sleep 0.2; done
"$engine" stop --time 300 "$volume" > /dev/null
code=$("$engine" inspect --format '{{.State.ExitCode}}' "$volume")
test "$code" = 143 || fail "a stopped extract ended with exit code $code, and not with 143"
kdtool extract --folder /runs/two --cache /runs/three.zarr --views 24 --quiet
kdtool cache verify --quiet /runs/three.zarr
kdtool extract --folder /runs/two --cache /runs/four.zarr --views 24 --quiet
test "$(digests three.zarr)" = "$(digests four.zarr)" || fail "an extract that was stopped came to other bytes"
echo "$image: an extract that was stopped ended with 143 and came to the bytes of an undisturbed one"
