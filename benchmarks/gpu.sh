#!/usr/bin/env bash
# All measurements on a GPU in one call: correctness, time per iteration, training, and the throughput of a server.
#
#   benchmarks/gpu.sh             on a machine with a GPU, in less than 10 minutes
#   benchmarks/gpu.sh --short     a small version for any machine; the default without a GPU
#   benchmarks/gpu.sh --wheels DIR   on a machine with a package index: download the wheels (17 MB) that an image with torch,
#                                 Python 3.12 and the usual data science packages lacks
#
# PYTHON   the interpreter, with torch (.venv/bin/python if it exists, otherwise python3)
# WHEELS   folder of the missing wheels, for machines without a package index; they are installed into a temporary folder
# DATA     folder of CIFAR-10's parquet files, as on the hub; without it, the digits recipe is trained
# MODEL    version folder whose steps are also measured, such as that of the authors' network
# EPOCHS   of the recipe cifar10_small (default 25, which should fit into the 200 s of that part)
# OUT      folder for tables, logs and the trained model (default: a temporary folder)
#
# Each part has a time limit, and with --short ten times that, for busy machines. The last line lists the parts that failed; the exit
# status is their number.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-$(mktemp -d)}
mkdir -p "$OUT"
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
if [ -n "${WHEELS:-}" ]; then
  packages=$(mktemp -d)
  "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$packages" "$WHEELS"/*.whl || exit 1
  PYTHONPATH=$PWD:$packages
fi

if [ "${1:-}" = --wheels ]; then
  lacking='annotated-types|datasets|dill|fastapi|fastapi_offline|httptools|kornia|kornia_rs|msgspec|multiprocess|opentelemetry-api'
  lacking+='|pydantic|pydantic_core|pydantic-settings|python-dotenv|python-multipart|starlette|structlog|typing-inspection|uvicorn|uvloop'
  rivals='litserve|pyzmq|torchdeq'
  platforms=(--platform manylinux_2_28_x86_64 --platform manylinux_2_26_x86_64 --platform manylinux_2_17_x86_64)
  # shellcheck disable=SC2046  # one word per package
  exec "$PYTHON" -m pip download --no-deps --only-binary :all: --python-version 3.12 --implementation cp "${platforms[@]}" \
    --dest "${2:?a folder}" $(grep -E "^($lacking)==" constraints.txt) $(grep -E "^($rivals)==" benchmarks/serving/constraints.txt)
fi

short=${1:-}
"$PYTHON" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' || short=--short
failed=()

part() {  # NAME SECONDS COMMAND...
  local name=$1 seconds=$2 start=$SECONDS
  shift 2
  echo "== $name"
  [ "$short" = --short ] && seconds=$((10 * seconds))
  timeout --signal=INT --kill-after=10 "$seconds" "$@" 2>&1 | tee "$OUT/$name.txt"
  local status=${PIPESTATUS[0]}
  echo "== $name: status $status, $((SECONDS - start)) s"
  [ "$status" = 0 ] || failed+=("$name")
}

"$PYTHON" - <<'END' | tee "$OUT/machine.txt"
import platform, torch
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU", "torch", torch.__version__, "python", platform.python_version())
END

if [ "$short" = --short ]; then
  check=(--rows 10) steps=(--batches 1,8 --seconds 0.05 --modes eager,graph) seconds=1
  train=(digits --epochs 2)
else
  check=() steps=(--seconds 0.3) seconds=5
  train=(digits)
  [ -z "${DATA:-}" ] || train=(cifar10_small --data "$DATA" --epochs "${EPOCHS:-25}")
fi

# If the results are wrong, timing them is pointless.
part check 100 "$PYTHON" -m benchmarks.gpu_check "${check[@]}"
if [ ${#failed[@]} = 0 ]; then
  part steps 140 "$PYTHON" -m benchmarks.gpu_steps "${steps[@]}" --out "$OUT/steps.csv"
  [ -z "${MODEL:-}" ] || part steps_of_model 60 "$PYTHON" -m benchmarks.gpu_steps "$MODEL" "${steps[@]}" --out "$OUT/steps_of_model.csv"
  part train 200 "$PYTHON" -m training train "${train[@]}" --store "$OUT/store" --runs "$OUT/runs"
  if "$PYTHON" -c 'import fastapi, uvicorn' 2>/dev/null; then
    part serve 50 "$PYTHON" -m benchmarks.gpu_serving "$OUT/store" --seconds "$seconds"
  else
    echo "== serve: fastapi or uvicorn is not installed: put their wheels into a folder, and set WHEELS to it"
    failed+=(serve)
  fi
fi
echo "== $SECONDS s; results in $OUT${failed:+; failed: ${failed[*]}}"
exit ${#failed[@]}
