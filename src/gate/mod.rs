//! Everything before a client is in: accept, TLS handshake, CONNECT, authentication, throttles.
//!
//! Slow and hostile peers end here, bounded in time, memory and number. Whoever is let in is handed
//! over whole; the gate keeps nothing but its place in the count.

mod admit;
mod exchange;
mod handshake;
mod link;
mod listen;
mod login;
mod material;
mod openssl_like;
mod pages;
mod proxy;
mod revocation;
mod seen;
mod slots;
mod stats;
mod throttle;
mod tickets;
mod tls;
mod upgrade;
mod verifier;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use zeroize::Zeroizing;

pub use listen::{Bound, ListenError, Listening, bind};
pub use material::{
    Finding, Material, MaterialError, Severity, load_directory, read_identities, read_min_levels, weak_passwords,
};
pub use pages::{Asked, Told};
pub use seen::{Seen, SeenEntry};
pub use stats::Stats;

use crate::auth::{Acl, Directory, Methods, PasswordHash};
use crate::config::LogStyle;
use crate::config::{Admission, Settings};
use crate::handover::{Handover, Words};
use crate::types::{Identity, Realm};
use slots::Slots;
pub use slots::network_of;
use throttle::Throttle;

/// Where clients that were let in go.
pub type Deliver = Arc<dyn Fn(Handover) + Send + Sync>;

/// The gate's state, shared by all listeners.
pub struct Gate {
    /// Swapped whole by a reload.
    current: ArcSwap<Current>,
    /// Held for reading from the last look at `current` until a client is handed over, for writing
    /// while it is swapped: who is handed over was let in by what holds when the swap is done.
    swap: RwLock<()>,
    slots: Arc<Slots>,
    throttle: Mutex<Throttle>,
    hashing: Arc<Semaphore>,
    numbers: AtomicU64,
    hasher: ahash::RandomState,
    methods: Methods,
    /// Where logins with weak hashes go, once somebody takes them.
    weak_logins: OnceLock<Sender<WeakLogin>>,
    /// Who answers what is asked by HTTP, once somebody does.
    told: OnceLock<Told>,
    /// Connections that were refused on purpose.
    turned_away: AtomicU32,
    pub stats: Arc<Stats>,
    pub seen: Arc<Seen>,
    deliver: Deliver,
}

/// A password that was right, and the weak hash that it was checked by.
pub struct WeakLogin {
    pub identity: Identity,
    /// Whose password file it was.
    pub realm: Realm,
    pub secret: Zeroizing<Vec<u8>>,
    pub hash: PasswordHash,
}

/// Of those, so many may wait.
const WEAK_LOGINS_MAX: usize = 64;

/// What the gate goes by at one time.
#[derive(Clone)]
struct Current {
    admission: Admission,
    directory: Arc<Directory>,
    acl: Arc<Acl>,
    /// By the listener's name.
    listeners: BTreeMap<String, Arc<material::ListenerMaterial>>,
    own_issuers: std::collections::BTreeSet<String>,
    words: Words,
    /// Weak hashes are made anew.
    rehash: bool,
    /// So many connections are refused, on purpose.
    busy: u32,
}

impl Gate {
    pub fn new(
        settings: &Settings,
        material: &Material,
        methods: Methods,
        seen: Arc<Seen>,
        deliver: Deliver,
    ) -> Arc<Gate> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).expect("the kernel's random generator");
        let word = |at: usize| u64::from_ne_bytes(seed[at..at + 8].try_into().expect("eight bytes"));
        let hasher = ahash::RandomState::with_seeds(word(0), word(8), word(16), word(24));
        let mut throttle = Throttle::new(&settings.admission, hasher.clone());
        // Who came in before the restart, and from where, is known.
        for (name, entry) in seen.entries() {
            if let Ok(address) = entry.from.parse::<std::net::SocketAddr>() {
                throttle.succeeded(Instant::now(), Some(address.ip()), &name);
            }
        }
        Arc::new(Gate {
            slots: Slots::new(&settings.admission),
            throttle: Mutex::new(throttle),
            swap: RwLock::default(),
            hashing: Arc::new(Semaphore::new(settings.admission.hashing_max)),
            numbers: AtomicU64::new(1),
            hasher,
            methods,
            weak_logins: OnceLock::new(),
            told: OnceLock::new(),
            turned_away: AtomicU32::new(0),
            stats: Arc::default(),
            seen,
            current: ArcSwap::from_pointee(Current::new(settings, material)),
            deliver,
        })
    }

    /// From the next connection on, this holds; established ones stay.
    pub fn reload(&self, settings: &Settings, material: &Material) {
        self.slots.configure(&settings.admission);
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner).configure(&settings.admission);
        let _swap = self.swap.write().unwrap_or_else(PoisonError::into_inner);
        self.current.store(Arc::new(Current::new(settings, material)));
    }

    /// From the next decision on, these may come in.
    pub fn replace_directory(&self, directory: Arc<Directory>) {
        let _swap = self.swap.write().unwrap_or_else(PoisonError::into_inner);
        let current = self.current.load();
        if !directory.serials().eq(current.directory.serials()) {
            // Whoever has a new certificate is to come with it.
            let tls = current.listeners.values().filter_map(|listener| listener.tls.as_ref());
            tls.for_each(|tls| tls.tickets.forget());
        }
        self.current.store(Arc::new(Current { directory, ..Current::clone(&current) }));
    }

    /// Right passwords whose hashes are weak, from now on, where the configuration wants those anew; of many at once some.
    pub fn weak_logins(&self) -> Receiver<WeakLogin> {
        let (sender, receiver) = channel(WEAK_LOGINS_MAX);
        let _ = self.weak_logins.set(sender);
        receiver
    }

    /// From now on `told` answers what is asked by HTTP.
    pub fn tells(&self, told: Told) {
        let _ = self.told.set(told);
    }

    /// Connections of all kinds, those among them that are not in yet.
    pub fn sockets(&self) -> usize {
        self.slots.taken()
    }

    fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }
}

impl Current {
    fn new(settings: &Settings, material: &Material) -> Current {
        Current {
            admission: settings.admission.clone(),
            directory: material.directory.clone(),
            acl: material.acl.clone(),
            listeners: material.listeners.clone(),
            own_issuers: material.own_issuers.clone(),
            rehash: settings.rehash,
            busy: settings.faults.server_busy,
            words: match settings.log.style {
                LogStyle::Own => Words::Own,
                LogStyle::Mosquitto { connections: true, .. } => Words::Mosquitto,
                LogStyle::Mosquitto { connections: false, .. } => Words::None,
            },
        }
    }
}
