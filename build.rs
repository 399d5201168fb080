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
        None if is_release => {
            if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
                println!("cargo:rerun-if-changed={head}");
            }
            let clean =
                git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| changes.is_empty());
            git(&["rev-parse", "--short=10", "HEAD"])
                .map(|commit| if clean { commit } else { format!("{commit}, changed") })
        }
        None => Some("a debug build".to_owned()),
    };
    let version = env!("CARGO_PKG_VERSION");
    let text = commit.map_or_else(|| version.to_owned(), |commit| format!("{version} ({commit})"));
    println!("cargo:rustc-env=LOCKGATE_VERSION={text}");
}

/// What git says; `None` where it is not there, or this is no checkout of its own.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
