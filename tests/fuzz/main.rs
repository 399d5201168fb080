//! Replays the corpus of the fuzz targets: what once found its way through the code still does, on the
//! compiler that builds the product. `cargo fuzz run --fuzz-dir tests/fuzz codec` looks for more.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking, and reads files")]

mod targets;

fn replay(name: &str, target: fn(&[u8])) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        if let Err(cause) = std::panic::catch_unwind(|| target(&bytes)) {
            eprintln!("{} fails", path.display());
            std::panic::resume_unwind(cause);
        }
        count += 1;
    }
    assert!(count > 0, "no corpus in {}", folder.display());
}

#[test]
fn codec() {
    replay("codec", targets::codec);
}

#[test]
fn filter() {
    replay("filter", targets::filter);
}

#[test]
fn core() {
    replay("core", targets::core);
}

#[test]
fn acl() {
    replay("acl", targets::acl);
}

#[test]
fn passwords() {
    replay("passwords", targets::passwords);
}

#[test]
fn yaml() {
    replay("yaml", targets::yaml);
}
