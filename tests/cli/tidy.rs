//! Style that can be tested: who may import whom, and how long a file may be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// design section 3: what each module of `src` may name of the others.
fn allowed() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        ("types", &[][..]),
        ("websocket", &[]),
        ("codec", &["types", "websocket"]),
        ("auth", &["types"]),
        ("broker", &["types", "codec", "auth"]),
        ("store", &["types", "codec", "broker"]),
        ("pki", &["types"]),
        ("acme", &["types", "pki", "config"]),
        // The option structs of those it configures.
        ("config", &["types", "auth", "broker", "store", "pki", "gate", "shard"]),
        ("handover", &["types", "codec", "auth", "websocket"]),
        ("client", &["types", "codec"]),
        ("load", &["types", "codec", "client"]),
        ("gate", &["types", "codec", "auth", "pki", "config", "handover", "websocket"]),
        ("shard", &["types", "codec", "auth", "broker", "store", "config", "handover", "websocket"]),
        ("admin", &["types", "config", "pki", "broker", "store", "gate", "shard"]),
        (
            "cli",
            &[
                "types", "codec", "auth", "broker", "store", "pki", "config", "handover", "client", "load", "gate",
                "shard", "acme", "admin",
            ],
        ),
    ])
}

const PURE: [&str; 4] = ["types", "codec", "auth", "broker"];
const LINES_MAX: usize = 650;

fn sources() -> Vec<(String, PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths
        .into_iter()
        .map(|path| {
            let below = path.strip_prefix(&root).unwrap();
            let module =
                below.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            (module, below.to_owned(), text)
        })
        .collect()
}

/// Code without comments, and without the tests at a file's end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

#[test]
fn modules_import_only_what_the_design_allows() {
    let allowed = allowed();
    let mut wrong = Vec::new();
    for (module, path, text) in sources() {
        if module == "lib" || module == "main" {
            continue;
        }
        let may = allowed.get(module.as_str()).unwrap_or_else(|| panic!("{module} is not in the design"));
        for part in code(&text).split("crate::").skip(1) {
            let name: String =
                part.chars().take_while(|character| character.is_ascii_alphanumeric() || *character == '_').collect();
            if name != module && !may.contains(&name.as_str()) {
                wrong.push(format!("{} names crate::{name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn pure_modules_name_no_socket_file_clock_or_random_generator() {
    let mut wrong = Vec::new();
    for (module, path, text) in sources().into_iter().filter(|(module, _, _)| PURE.contains(&module.as_str())) {
        for name in [
            "tokio",
            "mio::",
            "std::net",
            "std::fs",
            "std::io",
            "Instant::now",
            "SystemTime",
            "getrandom",
            "rand::",
            "RandomState::new",
        ] {
            if code(&text).contains(name) {
                wrong.push(format!("{} ({module}) names {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_the_codec_and_the_dialect_look_at_the_protocol_version() {
    let mut wrong = Vec::new();
    for (module, path, text) in sources().into_iter().filter(|(module, _, _)| module == "broker" || module == "shard") {
        if !path.ends_with("dialect.rs") && code(&text).contains("Version::V") {
            wrong.push(format!("{} ({module})", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn core_types_are_not_serialised() {
    for (module, path, text) in sources().into_iter().filter(|(module, _, _)| PURE.contains(&module.as_str())) {
        assert!(!code(&text).contains("Serialize"), "{} ({module})", path.display());
    }
}

#[test]
fn files_stay_readable() {
    for (_, path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines: what is its second subject?", path.display());
    }
}
