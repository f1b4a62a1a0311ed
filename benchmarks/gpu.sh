#!/usr/bin/env bash
# All measurements on a GPU in one call, the most important ones first: correctness, batching, a server against LitServe, the price of
# JFB_DETERMINISTIC, time per iteration, time per training step against the rivals', and a training run. Writes the tables, and gpu.md
# with all of them.
#
#   benchmarks/gpu.sh             on a machine with a GPU, in at most TOTAL seconds
#   PARTS="check engine batching serve deterministic" benchmarks/gpu.sh; PARTS="steps compiled training train" benchmarks/gpu.sh
#                                 the same in two calls, each of less than ten minutes even if every part takes all its time
#   benchmarks/gpu.sh --short     a small version for any machine; the default without a GPU
#   benchmarks/gpu.sh --wheels DIR   on a machine with a package index: download the wheels (14 MB) that an image with torch,
#                                 Python 3.12 and the usual data science packages lacks, LitServe and TorchDEQ among them
#
# PARTS    what to run (default: check engine batching serve deterministic steps compiled training train)
# TOTAL    seconds for all parts (default 570); each part has a limit of its own, too, and leaves the tables that it has by then
# PYTHON   the interpreter, with torch (.venv/bin/python if it exists, otherwise python3)
# WHEELS   folder of the missing wheels, for machines without a package index; they are installed into a temporary folder
# DATA     folder of CIFAR-10's parquet files, as on the hub; without it, the digits recipe is trained
# RECIPE   to train on DATA (default cifar10_small)
# EPOCHS   of that recipe (default 25, which should fit into the limit of that part; set TRAIN_SECONDS for more)
# MODEL    version folder to measure, such as that of the authors' network (default: the cifar10 recipe's network, untrained)
# OUT      folder for tables, logs and the trained model (default: a temporary folder)
#
# With --short the limits are ten times as long, for busy machines. The last line lists the parts that failed; the exit status is
# their number.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-$(mktemp -d)}
mkdir -p "$OUT"
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
if [ -n "${WHEELS:-}" ]; then
  packages=$(mktemp -d)
  "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$packages" "$WHEELS"/*.whl || exit 1
  PYTHONPATH=$PYTHONPATH:$packages
fi

if [ "${1:-}" = --wheels ]; then
  lacking='annotated-types|datasets|dill|fastapi|fastapi_offline|httptools|kornia|kornia_rs|msgspec|multiprocess|opentelemetry-api'
  lacking+='|pydantic|pydantic_core|pydantic-settings|python-dotenv|python-multipart|starlette|structlog|typing-inspection|uvicorn'
  rivals='litserve|pyzmq|torchdeq'
  platforms=(--platform manylinux_2_28_x86_64 --platform manylinux_2_26_x86_64 --platform manylinux_2_17_x86_64)
  # shellcheck disable=SC2046  # one word per package
  exec "$PYTHON" -m pip download --no-deps --only-binary :all: --python-version 3.12 --implementation cp "${platforms[@]}" \
    --dest "${2:?a folder}" $(grep -E "^($lacking)==" constraints.txt) $(grep -E "^($rivals)==" benchmarks/serving/constraints.txt)
fi

short=${1:-}
"$PYTHON" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' || short=--short
slower=1
[ "$short" = --short ] && slower=10
total=$((slower * ${TOTAL:-570}))
failed=()

part() {  # NAME SECONDS MODULE ARGUMENTS...
  local name=$1 seconds=$((slower * $2)) start=$SECONDS
  shift 2
  [[ " ${PARTS:-check engine batching serve deterministic steps compiled training train} " == *" $name "* ]] || return
  [ "$seconds" -le $((total - SECONDS)) ] || seconds=$((total - SECONDS))
  echo "== $name"
  if [ "$seconds" -lt 10 ]; then
    echo "== $name: no time is left"
    failed+=("$name")
    return
  fi
  timeout --signal=INT --kill-after=10 "$seconds" "$PYTHON" -m "$@" 2>&1 | tee "$OUT/$name.txt"
  local status=${PIPESTATUS[0]}
  echo "== $name: status $status, $((SECONDS - start)) s"
  [ "$status" = 0 ] || failed+=("$name")
}

"$PYTHON" - <<'END' | tee "$OUT/machine.txt"
import platform, torch
name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"a CPU ({platform.machine()})"
print(f"{name}, torch {torch.__version__}, Python {platform.python_version()}")
END

model=(${MODEL:+"$MODEL"})
if [ "$short" = --short ]; then
  check=(--rows 10) engine=(--rows 8 --networks implicit_mlp,implicit_resnet --norms relative)
  batching=(--slots 4 --requests 2 --rounds 1 --seconds 0.05) serve=(--connections 4 --seconds 0.5 --servers 2)
  deterministic=(--clients 1 --images 16 --rounds 2)
  steps=(--batches 1,8 --seconds 0.05 --precisions float32,bfloat16) compiled=(--batches 2 --seconds 0.05 --precisions float32)
  training=(--recipes cifar10_small --rounds 1 --batch-size 4 --no-compiled) train=(digits --epochs 2)
else
  check=() engine=() batching=() serve=() deterministic=(--clients 1,64,512 --images 512 --rounds 4)
  steps=(--seconds 0.2) compiled=(--batches 64,1024 --seconds 0.2 --precisions float32,bfloat16) training=()
  train=(digits)
  [ -z "${DATA:-}" ] || train=("${RECIPE:-cifar10_small}" --data "$DATA" --epochs "${EPOCHS:-25}")
fi

part check 70 benchmarks.gpu_check "${check[@]}"
part engine 85 benchmarks.gpu_engine "${engine[@]}"
part batching 120 benchmarks.gpu_batching "${model[@]}" "${batching[@]}" --out "$OUT"
part serve 140 benchmarks.gpu_serving "${model[@]}" "${serve[@]}" --out "$OUT/serving.csv"
part deterministic 55 benchmarks.deterministic "${model[@]}" "${deterministic[@]}" --precision auto --out "$OUT/deterministic.csv"
part steps 45 benchmarks.gpu_steps "${model[@]}" "${steps[@]}" --modes eager,graph,graph8 --out "$OUT/steps.csv"
part compiled 60 benchmarks.gpu_steps "${model[@]}" "${compiled[@]}" --modes compiled,compiled_graph --out "$OUT/steps_compiled.csv"
part training 80 benchmarks.gpu_training "${training[@]}" --out "$OUT/training.csv"
part train "${TRAIN_SECONDS:-140}" training train "${train[@]}" --store "$OUT/store" --runs "$OUT/runs"

"$PYTHON" -m benchmarks.gpu_report "$OUT" >"$OUT/gpu.md"
tar -czf "$OUT/all.tar.gz" -C "$OUT" --exclude all.tar.gz --exclude snapshot.pt . 2>/dev/null  # one file to copy
echo "== $SECONDS s; results in $OUT/gpu.md${failed:+; failed: ${failed[*]}}"
exit ${#failed[@]}
