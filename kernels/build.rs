//! With the feature `hip`: compiles the kernels of `device/` to one code object per GPU architecture.
//!
//! Without it nothing is done, so that the default build needs no clang. The compiler is the first that works of
//! `ROCMFORGE_CLANG`, clang 22 down to 19, ROCm's, and plain `clang++`; it must know the amdgcn target and find lld.
//! `ROCMFORGE_GPU_TARGETS` (comma-separated) builds for fewer architectures, which is quicker while developing.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Architectures of Instinct MI50, MI200 and MI300, and of Radeon RX 6000, 7000, 9000 and Strix Halo.
const TARGETS: [&str; 10] = [
    "gfx906", "gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1101", "gfx1102", "gfx1151", "gfx1200", "gfx1201",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=device");
    println!("cargo:rerun-if-changed=include");
    println!("cargo:rerun-if-env-changed=ROCMFORGE_CLANG");
    println!("cargo:rerun-if-env-changed=ROCMFORGE_GPU_TARGETS");
    if env::var_os("CARGO_FEATURE_HIP").is_none() {
        return Ok(());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets no OUT_DIR")?);
    let wanted = env::var("ROCMFORGE_GPU_TARGETS").unwrap_or_else(|_| TARGETS.join(","));
    let compiler = compiler()?;
    let mut list =
        String::from("/// Architecture and code object.\nstatic CODE_OBJECTS: &[(&str, &[u8])] = &[\n");
    let mut built = 0;
    for target in wanted.split(',').map(str::trim).filter(|target| !target.is_empty()) {
        let object = out.join(format!("{target}.hsaco"));
        match compile(&compiler, target, &object) {
            Ok(()) => {
                writeln!(list, "    ({target:?}, include_bytes!({object:?})),")?;
                built += 1;
            }
            // A compiler older than a GPU must not keep the others from being served.
            Err(message) => println!("cargo:warning=no kernels for {target}: {message}"),
        }
    }
    if built == 0 {
        return Err(format!("{} compiles the kernels for none of {wanted}", compiler.display()).into());
    }
    list.push_str("];\n");
    std::fs::write(out.join("code_objects.rs"), list)?;
    Ok(())
}

/// The first compiler that makes code for AMD GPUs.
fn compiler() -> Result<PathBuf, String> {
    let named = env::var_os("ROCMFORGE_CLANG").map(PathBuf::from);
    let versions = (19..=22).rev().map(|version| PathBuf::from(format!("clang++-{version}")));
    let others = ["/opt/rocm/llvm/bin/clang++", "clang++"].map(PathBuf::from);
    let candidates: Vec<PathBuf> = named.into_iter().chain(versions).chain(others).collect();
    let works = |compiler: &&PathBuf| {
        let output = Command::new(compiler).arg("--print-targets").output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("amdgcn"))
    };
    candidates.iter().find(works).cloned().ok_or_else(|| {
        let tried: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
        format!(
            "the feature `hip` needs clang 19 or newer with lld (Debian: clang-19 lld-19) or ROCm's; tried {}. \
             Name one with ROCMFORGE_CLANG, or build without the feature for the CPU alone.",
            tried.join(", ")
        )
    })
}

/// Compiles all kernels for `target`. The error is what the compiler said first.
fn compile(compiler: &Path, target: &str, object: &Path) -> Result<(), String> {
    let output = Command::new(compiler)
        .args(["-x", "hip", "--cuda-device-only", "--no-gpu-bundle-output", "-nogpuinc", "-nogpulib"])
        .args([
            "-O3",
            "-std=c++20",
            "-mcode-object-version=5",
            "-ffp-contract=off",
            "-Wall",
            "-Wextra",
            "-Werror",
        ])
        .arg(format!("--offload-arch={target}"))
        .args(["device/all.hip", "-o"])
        .arg(object)
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().find(|line| line.contains("error")).unwrap_or("it failed without a word").to_owned())
}
