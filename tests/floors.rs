//! The house's floors: a module uses lower floors only, never a neighbour on its own.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules by floor, the lowest first. Tests inside a module may look anywhere.
const FLOORS: [&[&str]; 10] = [
    &["error"],
    &["ranks", "weights"],
    &["device", "volume", "text"],
    &["vision", "structure", "decoder", "data"],
    &["config"],
    &["generate", "evaluate"],
    &["train", "assess", "compare", "document", "viewer", "plan"],
    &["run_page"],
    &["bench", "demo", "verify"],
    &["cli", "main"],
];

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// The modules of this crate that a source file names, its own tests left out.
fn used(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).flat_map(|line| [line, "\n"]).collect();
    let mut names = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let list = match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or_default(),
            None => rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default(),
        };
        names.extend(list.split(',').map(|name| name.trim().split("::").next().unwrap_or_default().to_string()));
    }
    names
}

#[test]
fn every_module_uses_lower_floors_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut faults = Vec::new();
    for path in sources(&root) {
        let inside = path.strip_prefix(&root).unwrap();
        let module = inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        if module == "lib" {
            continue;
        }
        let own = floor(module).unwrap_or_else(|| panic!("{module} stands on no floor"));
        for name in used(&fs::read_to_string(&path).unwrap()) {
            if let Some(other) = floor(&name).filter(|other| name != module && *other >= own) {
                faults.push(format!("{} (floor {own}) uses {name} (floor {other})", inside.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_operations_and_adapters_know_nothing_of_the_program() {
    for name in ["ops", "lora"] {
        for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(name).join("src")) {
            let source = fs::read_to_string(&path).unwrap();
            assert!(!source.contains("ctscribe::"), "{} names the program", path.display());
        }
    }
}

#[test]
fn no_library_whose_operations_cut_gradients_is_linked() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    assert!(!manifest.contains("candle-nn") && !manifest.contains("candle-transformers"));
    for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let source = fs::read_to_string(&path).unwrap();
        assert!(!source.contains("_no_bwd"), "{} calls an operation without a backward", path.display());
    }
}
