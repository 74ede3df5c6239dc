//! Tells the code whether the demo model has been trained into this tree (`demo/README.md` says how).

fn main() {
    println!("cargo::rustc-check-cfg=cfg(demo_model)");
    println!("cargo::rerun-if-changed=demo/rocmforge-demo.gguf");
    if std::path::Path::new("demo/rocmforge-demo.gguf").is_file() {
        println!("cargo::rustc-cfg=demo_model");
    }
}
