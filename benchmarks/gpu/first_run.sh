#!/usr/bin/env bash
# What a first hour on a GPU should learn, in calls of at most 10 minutes. On a machine with a GPU,
# in a checkout with .gpu/ in it (prepare.sh), or with all of [benchmark] installed:
#
#   bash benchmarks/gpu/first_run.sh check      # does it run, is it right      (about 4 to 7 minutes)
#   ... kernels    # bandwidth of every kernel                                  (1 to 2 minutes)
#   ... bench      # images/s, ours and SpikingJelly's, profiles                (7 to 9 minutes)
#   ... compiled   # the same with torch.compile of both                        (5 to 9 minutes)
#   ... small      # CIFAR's and DVS's models: bound by the CPU?                (3 to 5 minutes)
#   ... ncu        # hardware counters of our kernels                           (1 to 2 minutes)
#   ... again      # after a change: layer tests, kernels, one profile          (3 minutes)
#
# Several stages may be named. Every step has a limit of its own, and one that fails does not stop
# those behind it. Results are in $OUT: log.txt has everything, its end the summary.
# MODE=--dry runs the same without a GPU, tiny, with kernels that do nothing.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OUT=${OUT:-$PWD/.gpu/out} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
PYTHON=${PYTHON:-python3}
MODE=${MODE:-}
limit=${LIMIT:-575}  # seconds for everything: a call ends at 600
summary=()
mkdir -p "$OUT"
exec > >(tee -a "$OUT/log.txt") 2>&1
tee=$!

if [ -n "$MODE" ]; then
    tiny=(--batch 2)
    few=(--steps 1)
    on=(--device cpu --size 32 --model_args '{embed_dim: 128, num_heads: 2}' --no_memory --repeats 1)
    one=(--device cpu --shape 1,4,3,3 --T 2 --repeats 1 --no_memory)
    collect=(--collect-only)
else
    tiny=()
    few=()
    on=(--device cuda)
    one=(--device cuda --shape 32,96,56,56 32,384,14,14)
    collect=(-n 8 --dist worksteal)  # most of the time is NVRTC's; the GPU takes turns
fi

step() {  # step SECONDS NAME command...
    local most=$1 name=$2 left=$((limit - SECONDS))
    shift 2
    [ "$left" -lt "$most" ] && most=$left
    if [ "$most" -lt 15 ]; then
        summary+=("$name: left out, no time")
        return
    fi
    echo "=== $name (at $SECONDS s, at most $most s)"
    local start=$SECONDS
    timeout --kill-after=5 "$most" "$@"
    summary+=("$name: rc $?, $((SECONDS - start)) s")
}

with() {  # with TOOL: whether this machine has it, and whether there is anything for it to see
    command -v "$1" > /dev/null && [ -z "$MODE" ] || { echo "without $1"; return 1; }
}

setup() {
    with nvidia-smi && nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem \
        --format=csv
    local site=$PWD/.gpu/site
    if [ -d .gpu/whl ] && [ -z "$MODE" ]; then
        [ -d "$site/spikingjelly" ] || $PYTHON -m pip install -q --no-index --no-deps --no-compile \
            --no-cache-dir --upgrade --target "$site" .gpu/whl/*.whl || exit 1
        export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
    fi
    export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
    export CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-$PWD/.gpu/cupy_cache}
    mkdir -p "$CUPY_CACHE_DIR"
    [ -f .gpu/cupy_cache.tgz ] && tar -xzf .gpu/cupy_cache.tgz -C "$CUPY_CACHE_DIR"
    step 60 versions $PYTHON -m benchmarks.gpu.versions
}

keep() {  # CuPy's compiled kernels, for prepare.sh; a file of 16 MB and more would not come back
    tar -czf "$OUT/cupy_cache.tgz" -C "$CUPY_CACHE_DIR" .
    [ "$(stat -c %s "$OUT/cupy_cache.tgz")" -gt $((15 << 20)) ] && rm "$OUT/cupy_cache.tgz"
    ls -l "$OUT"
}

tests() {  # tests SECONDS where
    step "$1" "gpu tests" $PYTHON -m pytest -m gpu -q -p no:cacheprovider --durations=8 \
        -o faulthandler_timeout=120 "${collect[@]}" "$2"
}

sanitizer() {
    local race=() memory=()
    if with compute-sanitizer; then
        race=(compute-sanitizer --tool racecheck --racecheck-report all)
        memory=(compute-sanitizer --tool memcheck)
    fi
    step 100 racecheck "${race[@]}" $PYTHON -m benchmarks.gpu.sanitize $MODE masks
    step 150 memcheck "${memory[@]}" $PYTHON -m benchmarks.gpu.sanitize $MODE masks layers
}

kernels() {  # kernels SECONDS
    step "$1" kernels $PYTHON -m benchmarks.gpu.kernels $MODE --out "$OUT/kernels.json" "${tiny[@]}"
}

profile() {  # profile NAME arguments...
    local name=$1
    shift
    step 110 "profile $name" $PYTHON -m benchmarks.gpu.step $MODE --out "$OUT/$name.json" "$@" \
        "${tiny[@]}" "${few[@]}"
}

compare() {  # compare SECONDS MODEL PRECISION BATCHES arguments...
    local most=$1 model=$2 precision=$3 batches=$4
    shift 4
    [ -n "$MODE" ] && batches=2
    step "$most" "benchmarks.train $model $precision $batches $*" $PYTHON -m benchmarks.train \
        --model "$model" --precision "$precision" --batch $batches --repeats 7 --results "$OUT" \
        "${on[@]}" "$@"
}

counters() {
    local counted=()
    with ncu && counted=(ncu --clock-control none --csv --section SpeedOfLight --section Occupancy
        --section WarpStateStats --section LaunchStats --launch-count 80 --log-file "$OUT/ncu.csv"
        --kernel-name 'regex:^(forward|reduce|backward|moments|batch_norm|gradients|pooled_.*|qk_mask.*)$')
    step 150 ncu "${counted[@]}" $PYTHON -m benchmarks.gpu.kernels $MODE --once --batch 32 \
        --dtypes fp16 --layouts cl "${tiny[@]}"
}

setup
for stage in "${@:-check}"; do
    case $stage in
    check)
        tests 330 tests
        sanitizer
        ;;
    kernels) kernels 150 ;;
    bench)
        profile p_10_384 --model qkformer_10_384 --batch 128 --precision fp16 --graph
        compare 150 qkformer_10_384 fp16 "32 128"
        profile p_10_384_b32 --model qkformer_10_384 --batch 32 --precision bf16 --layouts cl --graph
        profile p_peer --model qkformer_10_384 --batch 32 --precision fp16 --layouts cl --graph --peer
        compare 100 qkformer_10_768 fp16 64
        ;;
    compiled)
        # nothing of what a CPU could compile in reasonable time
        [ -n "$MODE" ] || compare 560 qkformer_10_384 fp16 32 --compile
        ;;
    small)
        profile p_cifar --model qkformer_4_384 --batch 64 --precision fp16 --graph
        profile p_dvs --model qkformer_2_256 --batch 16 --precision fp16 --graph
        compare 80 qkformer_4_384 fp16 64
        step 60 benchmarks.neuron $PYTHON -m benchmarks.neuron --precision fp16 --results "$OUT" \
            "${one[@]}"
        ;;
    ncu) counters ;;
    again)
        tests 150 tests/neurons/cuda/test_gpu.py
        kernels 120
        profile p_again --model qkformer_10_384 --batch 128 --precision fp16 --layouts cl
        ;;
    *)
        echo "unknown stage $stage"
        exit 2
        ;;
    esac
done
keep
echo "=== summary: $SECONDS s"
printf '%s\n' "${summary[@]}"
exec >&- 2>&-
wait "$tee"
