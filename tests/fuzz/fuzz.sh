#!/usr/bin/env bash
# Fuzz the codec: tests/fuzz/fuzz.sh SECONDS [MUTATIONS] [PYTHON]
#
# First coverage-guided, where coverage is that of the Python side: the twin has the kernel's branches, and every input
# goes through both. What reached something new is added to the corpus. Then mutations of the corpus against the kernel under
# AddressSanitizer and UndefinedBehaviorSanitizer (gcc's, which has no coverage that atheris could read).
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"; root="$(cd "$here/../.." && pwd)"
seconds="${1:?how many seconds}"; mutations="${2:-100000}"; python="${3:-python3}"
work="$(mktemp -d)"; trap 'rm -rf "$work"' EXIT
mkdir -p "$work/narrows" "$work/found"
# A copy, so that the checkout's own kernel stays as it is.
(cd "$root" && tar cf - --exclude='*.so' __init__.py runtime protos tests) | tar xf - -C "$work/narrows"
export PYTHONPATH="$work${PYTHONPATH:+:$PYTHONPATH}"
build() {
    local include; include="$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')"
    "${CC:-gcc}" -std=c11 -shared -fPIC -I"$include" "$@" "$work"/narrows/runtime/codec/{_kernel,_loops,_loops_avx2}.c \
        -o "$work/narrows/runtime/codec/_kernel.abi3.so"
}

build -O2
"$python" "$work/narrows/tests/fuzz/fuzz_codec.py" "$work/found" "$here/corpus" \
    -max_total_time="$seconds" -max_len=1500 -timeout=10 -rss_limit_mb=3000 -artifact_prefix="$here/" -print_final_stats=1
cp -n "$work"/found/* "$here/corpus"/ || true

build -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
libraries="$("${CC:-gcc}" -print-file-name=libasan.so) $("${CC:-gcc}" -print-file-name=libubsan.so)"
# CPython's own allocations live as long as the process; PYTHONMALLOC lets the sanitizer see every buffer's end.
LD_PRELOAD="$libraries" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONMALLOC=malloc \
    "$python" "$work/narrows/tests/fuzz/mutate.py" --count "$mutations" --corpus "$here/corpus"
