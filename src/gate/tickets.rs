//! Tickets with which TLS sessions are resumed.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs;
use rustls::server::ProducesTickets;

/// Keys that can be thrown away: a resumed session brings the certificate that it began with, so that a device with
/// a new one must begin a new session.
pub(super) struct Tickets(ArcSwap<Arc<dyn ProducesTickets>>);

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tickets")
    }
}

impl Tickets {
    pub(super) fn new() -> Result<Arc<Tickets>, rustls::Error> {
        Ok(Arc::new(Tickets(ArcSwap::from_pointee(aws_lc_rs::Ticketer::new()?))))
    }

    /// From now on nobody resumes what began before.
    pub(super) fn forget(&self) {
        // Without randomness the old ones go on: a resumed certificate is looked up in the ledger all the same.
        if let Ok(fresh) = aws_lc_rs::Ticketer::new() {
            self.0.store(Arc::new(fresh));
        }
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.0.load().lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.load().encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.0.load().decrypt(cipher)
    }
}
