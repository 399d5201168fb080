use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

fn parsed(text: &str, environment: &[(&str, &str)]) -> Result<Settings, Vec<Problem>> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    parse(Path::new("/site/config/lockgate.yaml"), text, environment).map_err(|error| match error {
        ConfigError::Problems(problems) => problems,
        ConfigError::Unreadable { .. } => unreachable!("the text is at hand"),
    })
}

fn problems(text: &str, environment: &[(&str, &str)]) -> Vec<String> {
    parsed(text, environment)
        .unwrap_err()
        .iter()
        .map(|problem| format!("{}: {}", problem.place, problem.what))
        .collect()
}

#[test]
fn the_file_that_init_writes_says_the_defaults() {
    let written = parsed(&render(&Template::default()), &[]).unwrap();
    let defaults = parsed("", &[]).unwrap();
    assert_eq!(written, defaults);
    assert_eq!(written.pki, PathBuf::from("/site/pki"));
    assert_eq!(written.passwords, Some(PathBuf::from("/site/config/passwd")));
    assert_eq!(written.listeners.len(), 2);
}

#[test]
fn all_that_is_wrong_is_said_at_once_with_its_place() {
    let text = "nmae: x\nlimits:\n  packet-size-max: lots\n  inflight-max: 0\nlisteners:\n  - adress: all\n    port: 70000\nlog:\n  format: xml\n";
    let found = problems(text, &[]);
    let has = |start: &str| assert!(found.iter().any(|problem| problem.starts_with(start)), "{start}: {found:#?}");
    has("/site/config/lockgate.yaml:1:1: unknown key \"nmae\"; did you mean \"name\"?");
    has("/site/config/lockgate.yaml:3:20: packet-size-max takes a size such as");
    has("/site/config/lockgate.yaml:4:17: inflight-max lies between 1 and 65535, not 0");
    has("/site/config/lockgate.yaml:6:5: unknown key \"adress\"; did you mean \"address\"?");
    has("/site/config/lockgate.yaml:7:11: port lies between 0 and 65535, not 70000");
    has("/site/config/lockgate.yaml:9:11: format is one of human, json, not \"xml\"");
    assert_eq!(found.len(), 6, "{found:#?}");
    let shown = parsed(text, &[]).unwrap_err()[1].to_string();
    assert!(shown.contains("   3 |   packet-size-max: lots\n       |                    ^"), "{shown}");
}

#[test]
fn a_syntax_error_says_where() {
    let found = problems("name: x\nlimits: [1, 2\nlog: y\n", &[]);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("/site/config/lockgate.yaml:"), "{found:?}");
}

#[test]
fn the_environment_lies_over_the_file() {
    let text = "limits:\n  packet-size-max: 1MiB\n";
    let settings = parsed(
        text,
        &[
            ("LOCKGATE__LIMITS__PACKET_SIZE_MAX", "2MiB"),
            ("LOCKGATE__ADMISSION__CONNECT_TIMEOUT", "3s"),
            ("LOCKGATE__LISTENERS__0__ADDRESS", "all"),
            ("LOCKGATE__LISTENERS__0__PORT", "1884"),
            // Kubernetes sets these by itself: not ours.
            ("LOCKGATE_PORT", "tcp://10.0.0.1:1883"),
            ("LOCKGATE_SERVICE_HOST", "10.0.0.1"),
        ],
    )
    .unwrap();
    assert_eq!(settings.limits.packet_size_max, 2 << 20);
    assert_eq!(settings.admission.connect_timeout, Duration::from_secs(3));
    assert_eq!(settings.listeners.len(), 1);
    assert_eq!(settings.listeners[0].address, ListenerAddress::All(1884));
    let found = problems(text, &[("LOCKGATE__LIMITS__PAKET_SIZE_MAX", "1"), ("LOCKGATE__LISTENERS__7__PORT", "1")]);
    assert!(
        found.iter().any(|problem| problem.starts_with("LOCKGATE__LIMITS__PAKET_SIZE_MAX: unknown key")),
        "{found:?}"
    );
    assert!(found.iter().any(|problem| problem.starts_with("LOCKGATE__LISTENERS__7__PORT: ")), "{found:?}");
}

#[test]
fn a_listener_that_nobody_could_use_is_refused() {
    for text in [
        "listeners:\n  - port: 1883\n    min-level: tls\n",
        "listeners:\n  - port: 1883\n    identity: cn\n",
        "listeners:\n  - transport: tls\n    client-certs: off\n    min-level: mtls\n",
        "listeners: []\n",
        "listeners:\n  - transport: unix\n",
        "listeners:\n  - port: 1\n  - port: 1\n",
    ] {
        assert_eq!(problems(text, &[]).len(), 1, "{text}");
    }
}

#[test]
fn every_key_stands_in_the_file_that_init_writes() {
    // Each section asked for an impossible key names the keys that it knows.
    let text = "x: 1\ntls: {xxxxxxxxxx: 1}\nadmission: {xxxxxxxxxx: 1}\nlimits: {xxxxxxxxxx: 1}\nlog: {xxxxxxxxxx: 1}\nmetrics: {xxxxxxxxxx: 1}\nlisteners: [{transport: tls, xxxxxxxxxx: 1}]\n";
    let rendered = render(&Template::default());
    let mut keys = 0;
    for problem in problems(text, &[]) {
        let Some((_, known)) = problem.split_once("here are known: ") else { continue };
        for key in known.split(", ") {
            assert!(rendered.contains(&format!("{key}:")), "{key} is not in the template");
            keys += 1;
        }
    }
    assert!(keys > 35, "{keys}");
}
