//! The shards of one broker, with their inboxes.
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use lockgate::auth::{Acl, Methods};
use lockgate::broker::{
    Closing, Command, ConnectionId, Core, Counters, Gauges, Input, Limits, Options, SessionSnapshot, ShardId,
};
use lockgate::store::{Answer, Store};

use crate::recorder::Recorder;

const SEED: [u64; 4] = [1, 2, 3, 4];

pub(crate) struct Cluster {
    cores: Vec<Core>,
    durable: bool,
    methods: Methods,
    seed: [u64; 4],
    homes: BTreeMap<ConnectionId, usize>,
}

impl Cluster {
    pub(crate) fn new(shards: u16, limits: &Limits, acl: &Arc<Acl>, durable: bool, methods: &Methods) -> Cluster {
        let seed = SEED;
        let cores = (0..shards)
            .map(|shard| {
                let options = Options {
                    limits: limits.clone(),
                    durable,
                    seed,
                    shard: ShardId(shard),
                    shards,
                    methods: methods.clone(),
                };
                Core::new(options, acl.clone())
            })
            .collect();
        Cluster { cores, durable, methods: methods.clone(), seed, homes: BTreeMap::new() }
    }

    /// As a process that starts where another ended: of connections nothing is left.
    pub(crate) fn restart(&mut self, now: Instant, limits: &Limits, acl: &Arc<Acl>, out: &mut Recorder) {
        let homes = std::mem::take(&mut self.homes);
        for id in homes.into_keys() {
            out.closed.entry(id).or_insert(Closing::Lost);
        }
        out.written.clear();
        out.stalled.clear();
        out.inboxes.clear();
        out.asked.clear();
        *self = Cluster::new(self.cores.len() as u16, limits, acl, self.durable, &self.methods);
        let (restored, recovery) = out.store.reopen().expect("it was written by this version");
        if out.trace {
            eprintln!("restarts: {recovery:?}\n    {restored:?}");
        }
        let lost = (recovery.damages.len(), recovery.commits_missing, recovery.messages_lost);
        assert_eq!(lost, (0, 0, 0), "{recovery:?}");
        self.handle(now, Input::Restored(restored), out);
    }

    /// Gives the input to whom it concerns.
    pub(crate) fn handle(&mut self, now: Instant, input: Input<'_>, out: &mut Recorder) {
        let shards = self.cores.len() as u16;
        let home = match &input {
            Input::Connected(id, admission) => {
                let home = usize::from(Core::shard_of(self.seed, shards, &admission.client).0);
                self.homes.insert(*id, home);
                home
            }
            Input::Received(id, _) | Input::Malformed(id, _) | Input::Drained(id) | Input::Lost(id) => self.homes[id],
            Input::Committed(ticket) | Input::Failed(ticket) => (ticket.0 % u64::from(shards)) as usize,
            Input::Command(Command::Kick(id, _)) => self.homes[id],
            Input::Command(Command::Forget(identity, realm)) => {
                let (identity, realm) = (identity.clone(), *realm);
                return (0..self.cores.len())
                    .for_each(|at| self.turn(at, now, Input::Command(Command::Forget(identity.clone(), realm)), out));
            }
            Input::Command(Command::ShutDown) => {
                return (0..self.cores.len()).for_each(|at| self.turn(at, now, Input::Command(Command::ShutDown), out));
            }
            Input::Timer => return (0..self.cores.len()).for_each(|at| self.turn(at, now, Input::Timer, out)),
            // As the shards' handle does it: what is for one client goes to its shard.
            Input::Command(Command::Announce(messages)) => {
                match messages.first().and_then(|message| message.to.as_ref()) {
                    Some(client) => usize::from(Core::shard_of(self.seed, shards, client).0),
                    None => 0,
                }
            }
            Input::Restored(_) => 0,
            Input::Heard(..) | Input::Fetched(..) => unreachable!("taken from the inboxes and the store"),
        };
        self.turn(home, now, input, out);
    }

    fn turn(&mut self, at: usize, now: Instant, input: Input<'_>, out: &mut Recorder) {
        out.speaking = ShardId(at as u16);
        self.cores[at].handle(now, input, out);
    }

    /// Has one shard read the oldest letter in its inbox; `false` if there is none.
    pub(crate) fn hear(&mut self, at: usize, now: Instant, out: &mut Recorder) -> bool {
        let Some((from, letter)) = out.inboxes.get_mut(&ShardId(at as u16)).and_then(|inbox| inbox.pop_front()) else {
            return false;
        };
        self.turn(at, now, Input::Heard(from, letter), out);
        true
    }

    /// Has every shard read all its letters; `false` if there was none.
    pub(crate) fn hear_all(&mut self, now: Instant, out: &mut Recorder) -> bool {
        let mut any = false;
        for at in 0..self.cores.len() {
            while self.hear(at, now, out) {
                any = true;
            }
        }
        any
    }

    /// One answer of the store, or what it fetched; `false` if there is none.
    pub(crate) fn answer(&mut self, now: Instant, out: &mut Recorder) -> bool {
        let Some(answer) = out.store.poll_answer() else { return false };
        if out.trace {
            eprintln!("        the store answers {answer:?}");
        }
        match answer {
            Answer::Committed(ticket) => self.handle(now, Input::Committed(ticket), out),
            Answer::Failed(ticket) => self.handle(now, Input::Failed(ticket), out),
            Answer::Fetched(client, number, found) => {
                let asked = out.asked.remove(&(client.clone(), number)).expect("somebody asked");
                self.turn(usize::from(asked.0), now, Input::Fetched(client, number, found), out);
            }
        }
        true
    }

    /// The shard that has a connection.
    pub(crate) fn home(&self, id: ConnectionId) -> usize {
        self.homes[&id]
    }

    pub(crate) fn len(&self) -> usize {
        self.cores.len()
    }

    pub(crate) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        self.cores.iter().filter_map(|core| core.next_deadline(now)).min()
    }

    pub(crate) fn configure(&mut self, limits: &Limits, acl: &Arc<Acl>) {
        self.cores.iter_mut().for_each(|core| core.configure(limits.clone(), acl.clone()));
    }

    pub(crate) fn counters(&self) -> Counters {
        self.cores.iter().fold(Counters::default(), |mut sum, core| {
            sum += core.counters();
            sum
        })
    }

    pub(crate) fn gauges(&self) -> Gauges {
        self.cores.iter().fold(Gauges::default(), |mut sum, core| {
            sum += core.gauges();
            sum
        })
    }

    pub(crate) fn sessions(&self) -> Vec<SessionSnapshot> {
        self.cores.iter().flat_map(|core| core.sessions(0, 1_000_000, false).0).collect()
    }

    pub(crate) fn must_wait(&self, id: ConnectionId) -> bool {
        self.cores[self.homes[&id]].must_wait(id)
    }
}
