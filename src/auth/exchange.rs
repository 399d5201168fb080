//! Extended authentication (MQTT 5 section 4.12): what a method such as SCRAM-SHA-256 has to do.
//!
//! A method is made of pure steps: bytes from the client in, a [`Step`] out. The gate runs an exchange
//! before it lets a client in, the core when the client asks for another. Lockgate ships no method:
//! clients that name one are refused (0x8C).

use std::fmt;
use std::sync::Arc;

use crate::types::{Identity, ReasonCode};

/// An Authentication Method.
pub trait Method: Send + Sync {
    /// As a client names it in CONNECT, compared character by character.
    fn name(&self) -> &str;

    fn begin(&self) -> Box<dyn Exchange>;
}

/// One exchange under way.
pub trait Exchange: Send {
    /// Takes the Authentication Data of CONNECT or AUTH; absent data is empty.
    fn step(&mut self, data: &[u8]) -> Step;
}

/// What follows from one packet of an exchange.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Ask on: AUTH 0x18 with this data [MQTT-4.12.0-2].
    Continue(Vec<u8>),
    /// It is this identity; `data` goes with CONNACK, or with AUTH 0x00 where it was there already.
    Admit {
        identity: Identity,
        data: Option<Vec<u8>>,
    },
    Refuse(ReasonCode),
}

impl fmt::Debug for dyn Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exchange")
    }
}

/// The methods that a broker offers.
#[derive(Clone, Default)]
pub struct Methods(Arc<[Arc<dyn Method>]>);

impl Methods {
    pub fn new(methods: Vec<Arc<dyn Method>>) -> Methods {
        Methods(methods.into())
    }

    /// `None` for one that is not offered [MQTT-4.12.0-1].
    pub fn find(&self, name: &str) -> Option<&dyn Method> {
        self.0.iter().find(|method| method.name() == name).map(|method| &**method)
    }
}

impl fmt::Debug for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|method| method.name())).finish()
    }
}
