//! Clients that nobody here wrote, with the real binary: mosquitto_pub and mosquitto_sub,
//! paho-mqtt, MQTT.js and rumqttc, at all three security levels. `tests/run` installs them; one that
//! is missing is an error.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and may look at the world"
)]

#[path = "../support/describe.rs"]
mod describe;
#[path = "../support/mqtt.rs"]
mod mqtt;
#[path = "../support/site.rs"]
mod site;

mod acme;
mod api;
mod brought_over;
mod clients;
mod doctor;
mod enrol;
mod export;
mod mosquitto;
mod options;
mod own_tools;
mod paho;
mod refusals;
mod rotation;
mod rust;
mod stand_in;
mod throw_away;
mod up;
mod version_one;
mod websocket;
