# What a developer runs. CI calls the same commands through .ci/run.

# Everything CI checks.
check: format lint deny test gpu

format:
    cargo fmt --all --check

lint:
    cargo clippy --workspace --all-targets --locked -- -D warnings

deny:
    cargo deny check bans licenses sources

# The README's test command.
test:
    cargo test --workspace --locked

# The GPU kernels on a stand-in for the HIP runtime (needs clang 19, lld, LLVM's tools and sanitizers).
gpu:
    kernels/emulator/test.sh

# The README's start command, on the embedded demo model.
serve *args:
    cargo run --release --locked -p rocmforge-worker --bin rocmforge-worker -- --version
    cargo run --release --locked -p rocmforge --bin rocmforge -- serve {{args}}

# Times prefill and decode of a model file.
bench model *args:
    cargo build --release --locked
    target/release/rocmforge bench --model {{model}} {{args}}

# Speed of single kernels.
kernels:
    cargo run --release --locked -p rocmforge-kernels --example matmul_speed

# One minute of fuzzing per target (needs a nightly toolchain and cargo-fuzz).
fuzz seconds="60":
    cd shared && cargo +nightly fuzz run gguf -- -max_total_time={{seconds}} -rss_limit_mb=512
    cd shared && cargo +nightly fuzz run ipc_frame -- -max_total_time={{seconds}} -rss_limit_mb=512

# The product from outside only.
acceptance:
    cargo test --locked -p rocmforge -p rocmforge-worker -p rocmforge-tests
