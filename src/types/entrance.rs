use super::{QoS, Realm};

/// What the listener that a client came in by lays down for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entrance {
    pub realm: Realm,
    /// Put before each topic and filter of its clients, and taken off the topics that they are sent; empty: nothing is.
    pub mount_point: Box<str>,
    /// Maximum QoS (MQTT 5 section 3.2.2.3.4), where it is lower than everybody's.
    pub qos_max: QoS,
    /// Topic Alias Maximum (section 3.2.2.3.8), and that of the client: where they are lower than everybody's.
    pub topic_alias_max: u16,
    pub client_topic_alias_max: u16,
}

impl Default for Entrance {
    fn default() -> Entrance {
        Entrance {
            realm: Realm::SITE,
            mount_point: Box::default(),
            qos_max: QoS::ExactlyOnce,
            topic_alias_max: u16::MAX,
            client_topic_alias_max: u16::MAX,
        }
    }
}
