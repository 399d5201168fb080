//! Which commit a release is of: `lockgate --version` says it.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=LOCKGATE_COMMIT");
    println!("cargo:rerun-if-changed=build.rs");
    let given = std::env::var("LOCKGATE_COMMIT").ok();
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    // A build for development is made anew too often to look at git each time.
    let commit = match given {
        Some(commit) => Some(commit),
        // Whether something was changed since is not asked: it would have to be asked at each build. Releases say
        // their commit from outside, and are made of nothing else.
        None if is_release && is_own_checkout() => {
            if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
                println!("cargo:rerun-if-changed={head}");
            }
            git(&["rev-parse", "--short=10", "HEAD"]).map(|commit| format!("built from or after {commit}"))
        }
        None if is_release => None,
        None => Some("a debug build".to_owned()),
    };
    let version = env!("CARGO_PKG_VERSION");
    let text = commit.map_or_else(|| version.to_owned(), |commit| format!("{version} ({commit})"));
    println!("cargo:rustc-env=LOCKGATE_VERSION={text}");
}

/// Not of a project that has this one's files in it.
fn is_own_checkout() -> bool {
    let own = std::fs::canonicalize(env!("CARGO_MANIFEST_DIR")).ok();
    git(&["rev-parse", "--show-toplevel"]).is_some_and(|top| std::fs::canonicalize(top).ok() == own)
}

/// What git says; `None` where it is not there, or this is no checkout.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
