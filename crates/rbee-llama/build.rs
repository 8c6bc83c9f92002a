//! Compiles the C++ shim against the headers of the llama.cpp that
//! `llama-cpp-sys-2` built, so that both always agree.
#![expect(
    clippy::disallowed_methods,
    reason = "a build script is told about its build through the environment"
)]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

const SOURCES: [&str; 4] =
    ["shim/calls.cpp", "shim/chat.cpp", "shim/grammar.cpp", "shim/memory.cpp"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=shim");

    let sys_build_dir = PathBuf::from(env::var("DEP_LLAMA_ROOT")?);
    let llama = llama_source_dir(&sys_build_dir.join("build/CMakeCache.txt"))?;

    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .define("NDEBUG", None)
        // The headers of llama.cpp define static functions that the shim does not use.
        .flag_if_supported("-Wno-unused-function")
        .include(llama.join("common"))
        .include(llama.join("include"))
        .include(llama.join("ggml/include"))
        .include(llama.join("vendor"))
        .files(SOURCES);
    if env::var("CARGO_CFG_TARGET_VENDOR").is_ok_and(|vendor| vendor == "apple") {
        // llama-cpp-sys-2 links libc++ itself there, and twice is once too often.
        build.cpp_link_stdlib(None);
    }
    build.try_compile("rbee_llama_shim")?;
    Ok(())
}

/// The directory of the llama.cpp sources, as its cmake build recorded it.
fn llama_source_dir(cmake_cache: &Path) -> Result<PathBuf, Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", cmake_cache.display());
    let cache = fs::read_to_string(cmake_cache)
        .map_err(|error| format!("cannot read {}: {error}", cmake_cache.display()))?;
    cache
        .lines()
        .find_map(|line| line.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL="))
        .map(PathBuf::from)
        .ok_or_else(|| format!("{} names no CMAKE_HOME_DIRECTORY", cmake_cache.display()).into())
}
