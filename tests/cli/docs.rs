//! What docs/ says, held against what is there. With `LOCKGATE_BLESS=1` docs/configuration.md is written anew.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use lockgate::config::{Template, render};

use crate::site::{Site, lockgate, run_with};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// A key of the configuration as the template has it.
struct Key {
    section: String,
    name: String,
    default: String,
    meaning: String,
}

/// Sections with what stands before them, and keys in their order.
fn template() -> (Vec<(String, String)>, Vec<Key>) {
    let (mut sections, mut keys): (Vec<(String, String)>, Vec<Key>) =
        (vec![(String::new(), String::new())], Vec::new());
    let mut before = String::new();
    for line in render(&Template::default()).lines() {
        let text = line.trim_start();
        let indent = line.len() - text.len();
        if text.is_empty() {
            before.clear();
        } else if let Some(comment) = text.strip_prefix("# ").or(text.strip_prefix('#')) {
            match keys.last_mut().filter(|_| indent > 12) {
                Some(key) => write!(key.meaning, " {}", comment.trim()).unwrap(),
                None => write!(before, "{} ", comment.trim()).unwrap(),
            }
        } else if let Some((name, rest)) = text.trim_start_matches("- ").split_once(':') {
            let (value, comment) = rest.split_once(" # ").unwrap_or((rest, ""));
            if value.trim().is_empty() {
                sections.push((name.to_owned(), std::mem::take(&mut before).trim().to_owned()));
                continue;
            }
            if indent == 0 {
                // Of the file as a whole.
                before.clear();
            }
            let section = if indent == 0 { String::new() } else { sections.last().unwrap().0.clone() };
            let meaning = comment.trim().to_owned();
            let key = Key { section, name: name.to_owned(), default: value.trim().to_owned(), meaning };
            match keys.iter_mut().find(|known| known.section == key.section && known.name == key.name) {
                Some(known) if known.meaning.is_empty() => *known = key,
                Some(_) => {}
                None => keys.push(key),
            }
        }
    }
    (sections, keys)
}

fn configuration() -> String {
    let (sections, keys) = template();
    let mut text = "# Every key of the configuration\n\n\
        Made from the file that `lockgate init` writes, which has the same keys, defaults and words; a test keeps this page so. Paths start at the\n\
        configuration's folder. Times have units (`30s`, `5m`, `2h`, `7d`), sizes too (`64KiB`, `16MiB`). `lockgate serve --check` examines a\n\
        configuration, and says all that is wrong with it at once; `lockgate reload` puts a change into effect.\n\n\
        Each key can be set by the environment too: `LOCKGATE__` and its name in capitals, levels divided by two underscores and `-` written as `_`\n\
        (`LOCKGATE__LIMITS__PACKET_SIZE_MAX=1MiB`); listeners are numbered from 0 (`LOCKGATE__LISTENERS__0__PORT=1884`).\n"
        .to_owned();
    for (section, words) in &sections {
        let title = if section.is_empty() { "The whole" } else { section };
        write!(text, "\n## {title}\n\n").unwrap();
        if section == "listeners" {
            text.push_str(
                "A list. A `unix` listener has `path:` in place of address and port; `ws` and `wss` have `origins:` (`any`, `none`, or pages: `https://panel.example`).\n\n",
            );
        } else if !words.is_empty() {
            write!(text, "{words}\n\n").unwrap();
        }
        text.push_str("| Key | Default | |\n|---|---|---|\n");
        for key in keys.iter().filter(|key| key.section == *section) {
            let meaning = key.meaning.replace('|', "\\|");
            writeln!(text, "| `{}` | `{}` | {meaning} |", key.name, key.default).unwrap();
        }
    }
    text
}

#[test]
fn every_key_of_the_configuration_has_its_line() {
    let (path, made) = (root().join("docs/configuration.md"), configuration());
    if std::env::var_os("LOCKGATE_BLESS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == made, "docs/configuration.md is not what the configuration is: LOCKGATE_BLESS=1 writes it anew");
    assert!(template().1.len() > 80);
}

#[test]
fn every_metric_has_its_line_and_no_other_has() {
    let site = Site::new(&["--client", "device1"]);
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    site.edit("config/lockgate.yaml", "metrics:\n  address: off", &format!("metrics:\n  address: 127.0.0.1:{port}"));
    let _broker = site.serve();
    let url = format!("http://127.0.0.1:{port}/metrics");
    let (code, said) = run_with(Command::new("curl").args(["--silent", "--fail", &url]), b"");
    assert_eq!(code, Some(0), "{said}");
    let served: BTreeSet<&str> =
        said.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let text = page("metrics.md");
    let listed: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `lockgate_")?.split(['`', '{']).next())
        .map(|name| format!("lockgate_{}", name.trim_end_matches("_total")))
        .collect();
    let served: BTreeSet<String> = served.into_iter().map(str::to_owned).collect();
    assert_eq!(listed, served);
}

/// The longest run of characters that is in the source as it is: what differs from line to line is in capitals.
fn pieces(quoted: &str) -> Vec<String> {
    let is_place = |word: &str| {
        let letters: String = word.chars().filter(|c| c.is_ascii_alphabetic()).collect();
        !letters.is_empty()
            && letters.chars().all(|c| c.is_ascii_uppercase())
            && !["CA", "TLS", "MQTT", "ACL", "HTTP", "CONNECT", "DISCONNECT", "ACME", "WebSocket"].contains(&&*letters)
    };
    let mut pieces = vec![String::new()];
    for word in quoted.split(' ') {
        if is_place(word) || word.contains("...") {
            pieces.push(String::new());
        } else {
            let piece = pieces.last_mut().unwrap();
            if !piece.is_empty() {
                piece.push(' ');
            }
            piece.push_str(word);
        }
    }
    pieces.retain(|piece| piece.split(' ').count() >= 3);
    pieces
}

#[test]
fn every_line_of_the_log_that_the_page_quotes_is_in_the_source() {
    fn walk(folder: &Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, text);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut source = String::new();
    walk(&root().join("src"), &mut source);
    // Texts that go on in the next line.
    let plain = source.split("\\\n").map(str::trim_start).collect::<String>().replace('\n', " ");
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").replace(['"', '\\'], "");
    let source = squeeze(&plain);
    let (mut found, mut missing) = (0, Vec::new());
    for row in page("log.md").lines().filter(|line| line.starts_with("| `")) {
        let cell = row.trim_start_matches("| ").split(" | ").next().unwrap();
        for quoted in cell.split('`').skip(1).step_by(2) {
            for piece in pieces(quoted) {
                match source.contains(&squeeze(&piece)) {
                    true => found += 1,
                    false => missing.push(piece),
                }
            }
        }
    }
    // A few are put together from parts.
    assert!(found > 60 && missing.len() * 5 < found, "{found} found, these not: {missing:#?}");
}

#[test]
fn pages_name_commands_and_pages_that_there_are() {
    let mut wrong = Vec::new();
    let (code, help) = run_with(lockgate().arg("--help"), b"");
    assert_eq!(code, Some(0));
    let commands: BTreeSet<&str> =
        help.lines().filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next()).collect();
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.push(root().join("README.md"));
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        for (_, rest) in text.match_indices("lockgate ").map(|(at, word)| text.split_at(at + word.len())) {
            let name: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            let before = &text[..text.len() - rest.len() - "lockgate ".len()];
            // What is typed stands at the beginning of a line, or behind a backquote.
            let typed = before.ends_with(['`', '\n', '(']) || before.ends_with("$ ");
            if typed && !name.is_empty() && !commands.contains(name.as_str()) {
                wrong.push(format!("{}: lockgate {name}", file.display()));
            }
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = file.parent().unwrap().join(link.split('#').next().unwrap());
            if !link.starts_with("http") && !target.exists() {
                wrong.push(format!("{}: {link} is not there", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_command_has_an_example_a_man_page_and_completions() {
    let site = Site::empty();
    let folder = site.path("man").to_str().unwrap().to_owned();
    assert_eq!(run_with(lockgate().args(["man", &folder]), b"").0, Some(0));
    let mut pages: Vec<String> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    pages.sort();
    assert!(pages.len() > 50 && pages.contains(&"lockgate-client-revoke.1".to_owned()), "{pages:?}");
    let mut without = Vec::new();
    for page in &pages {
        let words: Vec<&str> = page.trim_end_matches(".1").split('-').skip(1).collect();
        // Mosquitto's own command lines, whose help is as there.
        if words.first().is_some_and(|word| word.starts_with("mosquitto")) {
            continue;
        }
        let (code, help) = run_with(lockgate().args(&words).arg("--help"), b"");
        assert_eq!(code, Some(0), "{page}: {help}");
        if !help.contains("Example") && !help.contains("From nothing to") && !help.contains("Commands:") {
            without.push(page.clone());
        }
    }
    assert!(without.is_empty(), "no example: {without:?}");
    for shell in ["bash", "zsh", "fish"] {
        let (code, said) = run_with(lockgate().args(["completions", shell]), b"");
        assert!(code == Some(0) && said.contains("revoke"), "{shell}");
    }
    let (_, script) = run_with(lockgate().args(["completions", "bash"]), b"");
    assert_eq!(run_with(Command::new("bash").arg("-n"), script.as_bytes()), (Some(0), String::new()));
    // Which commit it is of; a build for development says that it is one.
    let (_, version) = run_with(lockgate().arg("--version"), b"");
    assert!(version.starts_with(concat!("lockgate ", env!("CARGO_PKG_VERSION"), " (")), "{version}");
}
