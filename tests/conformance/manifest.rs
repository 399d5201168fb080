//! Holds `manifest.toml` to what it says: every statement is there once, has one outcome, and the tests
//! that it names exist and cite it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A statement's outcome.
#[derive(serde::Deserialize, Debug)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    tested: Vec<String>,
    not_applicable: Option<String>,
    excepted: Option<String>,
    /// The mutation that its test notices.
    disable: Option<String>,
}

#[derive(serde::Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Mutation {
    file: String,
    from: String,
    to: String,
}

/// What `disable mutants` tries.
#[derive(serde::Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Simulation {
    tests: Vec<String>,
    mutants: Vec<String>,
}

#[derive(serde::Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Manifest {
    simulation: Simulation,
    #[serde(default)]
    mutation: BTreeMap<String, Mutation>,
    #[serde(rename = "5.0")]
    v5: BTreeMap<String, Entry>,
    #[serde(rename = "3.1.1")]
    v311: BTreeMap<String, Entry>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn manifest() -> Manifest {
    let text = std::fs::read_to_string(root().join("tests/conformance/manifest.toml")).unwrap();
    toml::from_str(&text).unwrap_or_else(|error| panic!("manifest.toml: {error}"))
}

/// The identifiers of a standard's numbered statements, as its section numbers have them.
fn statements(list: &str) -> BTreeSet<String> {
    list.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .flat_map(|line| {
            let (section, numbers) = line.split_once(": ").unwrap();
            numbers.split(' ').map(move |number| format!("MQTT-{section}-{number}"))
        })
        .collect()
}

/// Every test of the project by its name, with its text from the comments above it to its end.
fn tests() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut walk = vec![(root().join("tests"), false), (root().join("src"), true)];
    while let Some((folder, unit)) = walk.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let hidden = path.file_name().unwrap().to_string_lossy().starts_with('.');
            if path.is_dir() && !hidden && !path.ends_with("fuzz") && !path.ends_with("bench") {
                walk.push((path, unit));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                tests_of(&path, unit, &mut found);
            }
        }
    }
    found
}

fn tests_of(path: &PathBuf, unit: bool, found: &mut BTreeMap<String, String>) {
    let below = path.strip_prefix(root().join(if unit { "src" } else { "tests" })).unwrap().with_extension("");
    let mut parts: Vec<String> = below.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if unit {
        parts.retain(|part| part != "mod");
        parts.insert(0, "lockgate".to_owned());
        if parts.last().is_some_and(|last| last != "tests") {
            parts.push("tests".to_owned());
        }
    } else {
        parts.retain(|part| part != "main");
    }
    let text = std::fs::read_to_string(path).unwrap();
    for piece in text.split("#[test]").skip(1).chain(text.split("#[tokio::test").skip(1)) {
        let Some((_, rest)) = piece.split_once("fn ") else { continue };
        let name = rest.split(['(', '<']).next().unwrap();
        // Up to the brace that ends it: at the start of a line, or one step in within `mod tests`.
        let end =
            ["\n}", "\n    }\n\n", "\n        }\n"].iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
        found.insert(format!("{}::{name}", parts.join("::")), rest[..end].to_owned());
    }
}

#[test]
fn every_statement_has_an_outcome_that_holds() {
    let manifest = manifest();
    let tests = tests();
    let mut wrong = Vec::new();
    let mut counts = BTreeMap::new();
    let lists = [
        ("5.0", &manifest.v5, include_str!("statements-5.0.txt")),
        ("3.1.1", &manifest.v311, include_str!("statements-3.1.1.txt")),
    ];
    for (version, entries, list) in lists {
        let wanted = statements(list);
        wrong.extend(
            wanted.iter().filter(|id| !entries.contains_key(*id)).map(|id| format!("{version} {id} is not listed")),
        );
        for (id, entry) in entries {
            if !wanted.contains(id) {
                wrong.push(format!("{version} {id} is no statement"));
            }
            let outcomes = [!entry.tested.is_empty(), entry.not_applicable.is_some(), entry.excepted.is_some()];
            match outcomes {
                [true, false, false] => *counts.entry((version, "tested")).or_insert(0) += 1,
                [false, true, false] => *counts.entry((version, "not applicable")).or_insert(0) += 1,
                [false, false, true] => *counts.entry((version, "excepted")).or_insert(0) += 1,
                _ => wrong.push(format!("{version} {id} has to have one outcome")),
            }
            for name in entry.tested.iter().filter(|name| !tests.contains_key(*name)) {
                wrong.push(format!("{version} {id}: there is no test {name}"));
            }
            if let Some(name) = entry.disable.as_ref().filter(|name| !manifest.mutation.contains_key(*name)) {
                wrong.push(format!("{version} {id}: there is no mutation {name}"));
            }
        }
    }
    let Simulation { tests: simulated, mutants } = manifest.simulation;
    wrong.extend(
        mutants.iter().filter(|name| !manifest.mutation.contains_key(*name)).map(|name| format!("no mutant {name}")),
    );
    let unknown = |name: &&String| !tests.contains_key(&format!("simulation::{name}"));
    wrong.extend(simulated.iter().filter(unknown).map(|name| format!("no simulation {name}")));
    for ((version, outcome), count) in &counts {
        println!("MQTT {version}: {count} {outcome}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(counts.values().sum::<usize>(), 391);
}

#[test]
fn every_mutation_finds_its_place() {
    for (name, Mutation { file, from, to }) in manifest().mutation {
        let text = std::fs::read_to_string(root().join(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(text.matches(from.as_str()).count(), 1, "mutation {name}: its text has to be once in {file}");
        assert_ne!(from, to, "mutation {name} changes nothing");
    }
}
