//! Writes what each target begins with in the form that libFuzzer reads: its seeds as files of a corpus, its words as a
//! dictionary.
//!
//! usage: seeds DIRECTORY, into which `corpus/TARGET` and `dictionaries/TARGET` are written

use std::path::Path;
use std::{env, fs, io};

use fuzz_targets::{TARGETS, Target};

fn main() -> io::Result<()> {
    let directory =
        env::args_os().nth(1).ok_or_else(|| io::Error::other("usage: seeds DIRECTORY"))?;
    let directory = Path::new(&directory);
    fs::create_dir_all(directory.join("dictionaries"))?;
    for target in TARGETS {
        let corpus = directory.join("corpus").join(target.name);
        fs::create_dir_all(&corpus)?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(corpus.join(format!("seed-{number}")), seed)?;
        }
        fs::write(directory.join("dictionaries").join(target.name), dictionary(target))?;
    }
    Ok(())
}

/// A line for each word, all of its bytes as numbers.
fn dictionary(target: &Target) -> String {
    let byte = |byte: u8| format!("\\x{byte:02X}");
    let line = |word: &&str| format!("\"{}\"\n", word.bytes().map(byte).collect::<String>());
    target.words.iter().map(line).collect()
}
