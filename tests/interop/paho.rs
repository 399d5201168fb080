use crate::clients::{LEVELS, bundle, node, port, python};
use crate::site::{Broker, Site, run_with};

const SCENARIO_PY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/scenario.py");
const SCENARIO_JS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/scenario.js");

fn scenarios(client: fn() -> std::process::Command, script: &str, version: &str) {
    let site = Site::new(&["--client", "device1"]);
    let broker: Broker = site.serve();
    for level in LEVELS {
        let environment = bundle(&site, "device1", level).join("mqtt.env");
        let mut command = client();
        command.arg(script).arg(environment).arg(version).arg(port(&broker, level).to_string()).arg(level);
        let (code, text) = run_with(&mut command, b"");
        assert!(code == Some(0) && text.ends_with("ok\n"), "{level}: {text}\n{}", broker.log());
    }
}

#[test]
fn paho_speaks_3_1_1_at_every_level() {
    scenarios(python, SCENARIO_PY, "3.1.1");
}

#[test]
fn paho_speaks_5_at_every_level() {
    scenarios(python, SCENARIO_PY, "5");
}

#[test]
fn mqtt_js_speaks_3_1_1_at_every_level() {
    scenarios(node, SCENARIO_JS, "3.1.1");
}

#[test]
fn mqtt_js_speaks_5_at_every_level() {
    scenarios(node, SCENARIO_JS, "5");
}
