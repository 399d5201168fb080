//! Which subscriptions match a topic.
//!
//! Filters without a wildcard lie in one table by their text. The others form a tree of levels
//! whose edges lie in one table too, keyed by parent and level, so that a node costs little and a
//! topic is matched by looking up only what can match. Nothing here recurses.

use std::sync::Arc;

use hashbrown::{HashMap, HashTable};
use indexmap::IndexMap;

use crate::types::{Filter, QoS, Topic};

/// One session's subscription as the index keeps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Subscriber {
    pub(super) session: u32,
    /// 0: none.
    pub(super) identifier: u32,
    pub(super) qos: QoS,
    pub(super) no_local: bool,
    pub(super) retain_as_published: bool,
}

/// A shared subscription (MQTT 5 section 4.8.2).
#[derive(Debug)]
pub(super) struct Group {
    /// `$share/NAME/FILTER`.
    pub(super) filter: Arc<str>,
    pub(super) members: IndexMap<Member, Subscriber, ahash::RandomState>,
    /// Whose turn it is.
    pub(super) turn: usize,
}

/// Who takes part in a shared subscription.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Member {
    /// A session of this shard.
    Here(u32),
    /// One of [`super::shared::Elsewheres`].
    Elsewhere(u32),
}

/// The session of a publisher that another shard has.
pub(super) const ELSEWHERE: u32 = u32::MAX;

/// One filter's subscribers.
#[derive(Default, Debug)]
struct Subscribers {
    list: Vec<Subscriber>,
    /// Where in the list each session is; kept once there are many.
    places: Option<Box<HashMap<u32, u32, ahash::RandomState>>>,
}

/// From so many on a search would be felt.
const MANY: usize = 64;

impl Subscribers {
    fn place(&self, session: u32) -> Option<usize> {
        match &self.places {
            Some(places) => places.get(&session).map(|at| *at as usize),
            None => self.list.iter().position(|known| known.session == session),
        }
    }

    fn insert(&mut self, known: bool, subscriber: Subscriber, hasher: &ahash::RandomState) {
        let there = if known { self.place(subscriber.session) } else { None };
        if let Some(at) = there {
            self.list[at] = subscriber;
            return;
        }
        let at = self.list.len() as u32;
        self.list.push(subscriber);
        if let Some(places) = &mut self.places {
            places.insert(subscriber.session, at);
        } else if self.list.len() > MANY {
            let mut places = HashMap::with_hasher(hasher.clone());
            places.extend(self.list.iter().enumerate().map(|(at, one)| (one.session, at as u32)));
            self.places = Some(Box::new(places));
        }
    }

    fn remove(&mut self, session: u32) -> bool {
        let Some(at) = self.place(session) else { return false };
        let Some(places) = &mut self.places else {
            self.list.remove(at);
            return true;
        };
        self.list.swap_remove(at);
        places.remove(&session);
        if let Some(moved) = self.list.get(at) {
            places.insert(moved.session, at as u32);
        }
        if self.list.len() <= MANY / 2 {
            self.places = None;
        }
        true
    }
}

type Groups = IndexMap<Arc<str>, Group, ahash::RandomState>;

#[derive(Default, Debug)]
struct Leaf {
    subscribers: Subscribers,
    /// By their filters; most leaves have none.
    groups: Option<Box<Groups>>,
}

impl Leaf {
    fn is_empty(&self) -> bool {
        self.subscribers.list.is_empty() && self.groups.is_none()
    }

    /// Adds a member to a group, or replaces the one that is there; `true` if it is new.
    fn join(&mut self, filter: &str, member: Member, subscriber: Subscriber, hasher: &ahash::RandomState) -> bool {
        let groups = self.groups.get_or_insert_with(|| Box::new(IndexMap::with_hasher(hasher.clone())));
        if !groups.contains_key(filter) {
            let filter: Arc<str> = filter.into();
            let members = IndexMap::with_hasher(hasher.clone());
            groups.insert(filter.clone(), Group { filter, members, turn: 0 });
        }
        groups[filter].members.insert(member, subscriber).is_none()
    }

    fn leave(&mut self, filter: &str, member: Member) -> bool {
        let Some(groups) = &mut self.groups else { return false };
        let Some(group) = groups.get_mut(filter) else { return false };
        let removed = group.members.swap_remove(&member).is_some();
        if group.members.is_empty() {
            groups.swap_remove(filter);
        }
        if groups.is_empty() {
            self.groups = None;
        }
        removed
    }
}

const ROOT: u32 = 0;
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Node {
    parent: u32,
    level: Box<str>,
    /// The child for `+`, so that it needs no look-up.
    single: u32,
    children: u32,
    /// Filters that end here.
    here: Leaf,
    /// Filters that go on with `#` and nothing else.
    multi: Leaf,
}

/// What a topic matched: where subscribers lie, to be read without copying a large list.
#[derive(Default, Debug)]
pub(super) struct Matches {
    found: Vec<Place>,
    stack: Vec<(u32, usize)>,
    bounds: Vec<(u32, u32)>,
    /// Nodes looked at.
    #[cfg(test)]
    visited: usize,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Exact(u32),
    Here(u32),
    Multi(u32),
}

#[derive(Debug)]
pub(super) struct Index {
    hasher: ahash::RandomState,
    /// Where filters without a wildcard are in `leaves`.
    exact: HashTable<u32>,
    leaves: slab::Slab<(Box<str>, Leaf)>,
    nodes: slab::Slab<Node>,
    edges: HashTable<u32>,
    count: usize,
    shared: usize,
}

impl Index {
    pub(super) fn new(hasher: ahash::RandomState) -> Index {
        let mut nodes = slab::Slab::new();
        let root = nodes.insert(Node {
            parent: NONE,
            level: "".into(),
            single: NONE,
            children: 0,
            here: Leaf::default(),
            multi: Leaf::default(),
        });
        debug_assert_eq!(root as u32, ROOT);
        let (exact, leaves, edges) = (HashTable::new(), slab::Slab::new(), HashTable::new());
        Index { hasher, exact, leaves, nodes, edges, count: 0, shared: 0 }
    }

    /// Subscriptions of all sessions.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Of those, in shared subscriptions.
    pub(super) fn shared_len(&self) -> usize {
        self.shared
    }

    /// `known`: the session has this filter already, and it is replaced.
    pub(super) fn insert(&mut self, filter: Filter<'_>, known: bool, subscriber: Subscriber) {
        let added = if filter.share().is_some() {
            self.join(filter, Member::Here(subscriber.session), subscriber)
        } else {
            let hasher = self.hasher.clone();
            self.leaf_or_insert(filter).subscribers.insert(known, subscriber, &hasher);
            !known
        };
        self.count += usize::from(added);
        self.shared += usize::from(added && filter.share().is_some());
    }

    /// Adds a member to a shared subscription, or replaces it; `true` if it is new. Members that are
    /// elsewhere do not count among this shard's subscriptions.
    pub(super) fn join(&mut self, filter: Filter<'_>, member: Member, subscriber: Subscriber) -> bool {
        let hasher = self.hasher.clone();
        self.leaf_or_insert(filter).join(filter.as_str(), member, subscriber, &hasher)
    }

    /// `true` if the session had this filter.
    pub(super) fn remove(&mut self, filter: Filter<'_>, session: u32) -> bool {
        let removed = self.change(filter, |leaf| match filter.share() {
            None => leaf.subscribers.remove(session),
            Some(_) => leaf.leave(filter.as_str(), Member::Here(session)),
        });
        self.count -= usize::from(removed);
        self.shared -= usize::from(removed && filter.share().is_some());
        removed
    }

    /// Takes a member that is elsewhere out of a shared subscription.
    pub(super) fn leave(&mut self, filter: Filter<'_>, member: Member) -> bool {
        self.change(filter, |leaf| leaf.leave(filter.as_str(), member))
    }

    /// The shared subscription `filter`, if anybody is in it.
    pub(super) fn group_mut(&mut self, filter: Filter<'_>) -> Option<&mut Group> {
        let node = self.node(filter)?;
        self.leaf_mut(node).groups.as_mut()?.get_mut(filter.as_str())
    }

    fn leaf_or_insert(&mut self, filter: Filter<'_>) -> &mut Leaf {
        if !filter.has_wildcard() {
            let at = self.exact(filter.path()).unwrap_or_else(|| self.insert_exact(filter.path()));
            return &mut self.leaves[at as usize].1;
        }
        let mut node = ROOT;
        let mut multi = false;
        for level in filter.levels() {
            if level == "#" {
                multi = true;
            } else {
                node = self.child_or_insert(node, level);
            }
        }
        let node = &mut self.nodes[node as usize];
        if multi { &mut node.multi } else { &mut node.here }
    }

    /// Where a filter's subscribers lie.
    fn node(&self, filter: Filter<'_>) -> Option<Place> {
        if !filter.has_wildcard() {
            return self.exact(filter.path()).map(Place::Exact);
        }
        let mut node = ROOT;
        let mut multi = false;
        for level in filter.levels() {
            if level == "#" {
                multi = true;
            } else {
                node = self.child(node, level)?;
            }
        }
        Some(if multi { Place::Multi(node) } else { Place::Here(node) })
    }

    /// Changes a filter's leaf and takes away what is left empty.
    fn change(&mut self, filter: Filter<'_>, change: impl FnOnce(&mut Leaf) -> bool) -> bool {
        match self.node(filter) {
            None => false,
            Some(Place::Exact(at)) => {
                let leaf = &mut self.leaves[at as usize].1;
                let changed = change(leaf);
                if leaf.is_empty() {
                    self.remove_exact(at);
                }
                changed
            }
            Some(Place::Here(node)) => {
                let changed = change(&mut self.nodes[node as usize].here);
                self.prune(node);
                changed
            }
            Some(Place::Multi(node)) => {
                let changed = change(&mut self.nodes[node as usize].multi);
                self.prune(node);
                changed
            }
        }
    }

    /// Finds what matches `topic`; `matches` is scratch space and keeps its room.
    pub(super) fn find(&self, topic: Topic<'_>, matches: &mut Matches) {
        matches.found.clear();
        matches.found.extend(self.exact(topic.as_str()).map(Place::Exact));
        if self.nodes.len() == 1 && self.nodes[ROOT as usize].multi.is_empty() {
            return;
        }
        let text = topic.as_str();
        matches.bounds.clear();
        let mut start = 0;
        for end in memchr::memchr_iter(b'/', text.as_bytes()).chain([text.len()]) {
            matches.bounds.push((start as u32, end as u32));
            start = end + 1;
        }
        matches.stack.push((ROOT, 0));
        #[cfg(test)]
        {
            matches.visited = 0;
        }
        while let Some((at, depth)) = matches.stack.pop() {
            #[cfg(test)]
            {
                matches.visited += 1;
            }
            let node = &self.nodes[at as usize];
            // [MQTT-4.7.2-1]: a leading wildcard does not match a topic that begins with $.
            let wildcards = depth > 0 || !topic.is_system();
            if wildcards && !node.multi.is_empty() {
                matches.found.push(Place::Multi(at));
            }
            let Some(&(start, end)) = matches.bounds.get(depth) else {
                if !node.here.is_empty() {
                    matches.found.push(Place::Here(at));
                }
                continue;
            };
            if node.children == 0 {
                continue;
            }
            if wildcards && node.single != NONE {
                matches.stack.push((node.single, depth + 1));
            }
            if let Some(child) = self.child(at, &text[start as usize..end as usize]) {
                matches.stack.push((child, depth + 1));
            }
        }
    }

    /// Calls `each` with every list of subscribers found, in the order found.
    pub(super) fn subscribers<'a>(&'a self, matches: &Matches, mut each: impl FnMut(&'a [Subscriber])) {
        for place in &matches.found {
            each(&self.leaf(*place).subscribers.list);
        }
    }

    /// Whether any of what was found is a shared subscription.
    pub(super) fn has_groups(&self, matches: &Matches) -> bool {
        matches.found.iter().any(|place| self.leaf(*place).groups.is_some())
    }

    /// Calls `each` with every shared subscription found.
    pub(super) fn groups(&mut self, matches: &Matches, mut each: impl FnMut(&mut Group)) {
        for place in &matches.found {
            for group in self.leaf_mut(*place).groups.iter_mut().flat_map(|groups| groups.values_mut()) {
                each(group);
            }
        }
    }

    fn leaf(&self, place: Place) -> &Leaf {
        match place {
            Place::Exact(at) => &self.leaves[at as usize].1,
            Place::Here(node) => &self.nodes[node as usize].here,
            Place::Multi(node) => &self.nodes[node as usize].multi,
        }
    }

    fn leaf_mut(&mut self, place: Place) -> &mut Leaf {
        match place {
            Place::Exact(at) => &mut self.leaves[at as usize].1,
            Place::Here(node) => &mut self.nodes[node as usize].here,
            Place::Multi(node) => &mut self.nodes[node as usize].multi,
        }
    }

    fn exact(&self, text: &str) -> Option<u32> {
        self.exact.find(self.hasher.hash_one(text), |&at| *self.leaves[at as usize].0 == *text).copied()
    }

    fn insert_exact(&mut self, text: &str) -> u32 {
        let at = self.leaves.insert((text.into(), Leaf::default())) as u32;
        let (leaves, hasher) = (&self.leaves, &self.hasher);
        self.exact.insert_unique(hasher.hash_one(text), at, |&at| hasher.hash_one(&*leaves[at as usize].0));
        at
    }

    fn remove_exact(&mut self, at: u32) {
        let (text, _) = self.leaves.remove(at as usize);
        if let Ok(entry) = self.exact.find_entry(self.hasher.hash_one(&*text), |&other| other == at) {
            entry.remove();
        }
    }

    fn edge_hash(hasher: &ahash::RandomState, parent: u32, level: &str) -> u64 {
        hasher.hash_one((parent, level))
    }

    fn child(&self, parent: u32, level: &str) -> Option<u32> {
        if level == "+" {
            // A topic never has this level; only a filter asks for it.
            let single = self.nodes[parent as usize].single;
            return (single != NONE).then_some(single);
        }
        let hash = Self::edge_hash(&self.hasher, parent, level);
        self.edges
            .find(hash, |&at| {
                let node = &self.nodes[at as usize];
                node.parent == parent && &*node.level == level
            })
            .copied()
    }

    fn child_or_insert(&mut self, parent: u32, level: &str) -> u32 {
        if let Some(child) = self.child(parent, level) {
            return child;
        }
        let child = self.nodes.insert(Node {
            parent,
            level: level.into(),
            single: NONE,
            children: 0,
            here: Leaf::default(),
            multi: Leaf::default(),
        }) as u32;
        self.nodes[parent as usize].children += 1;
        if level == "+" {
            self.nodes[parent as usize].single = child;
        } else {
            let hash = Self::edge_hash(&self.hasher, parent, level);
            let (nodes, hasher) = (&self.nodes, &self.hasher);
            self.edges.insert_unique(hash, child, |&at| {
                let node = &nodes[at as usize];
                Self::edge_hash(hasher, node.parent, &node.level)
            });
        }
        child
    }

    /// Removes `node` and its ancestors as far as nothing hangs on them.
    fn prune(&mut self, mut at: u32) {
        while at != ROOT {
            let node = &self.nodes[at as usize];
            if node.children > 0 || !node.here.is_empty() || !node.multi.is_empty() {
                return;
            }
            let parent = node.parent;
            if &*node.level == "+" {
                self.nodes[parent as usize].single = NONE;
            } else {
                let hash = Self::edge_hash(&self.hasher, parent, &node.level);
                if let Ok(edge) = self.edges.find_entry(hash, |&other| other == at) {
                    edge.remove();
                }
            }
            self.nodes.remove(at as usize);
            self.nodes[parent as usize].children -= 1;
            at = parent;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index() -> Index {
        Index::new(ahash::RandomState::with_seeds(1, 2, 3, 4))
    }

    fn subscriber(session: u32) -> Subscriber {
        Subscriber { session, identifier: 0, qos: QoS::AtMostOnce, no_local: false, retain_as_published: false }
    }

    fn sessions(index: &Index, topic: &str) -> Vec<u32> {
        let topic = Topic::parse(topic).unwrap();
        let mut matches = Matches::default();
        index.find(topic, &mut matches);
        let mut found = Vec::new();
        index.subscribers(&matches, |list| found.extend(list.iter().map(|subscriber| subscriber.session)));
        found.sort_unstable();
        found
    }

    fn text(alphabet: &'static str) -> impl Strategy<Value = String> {
        proptest::collection::vec(proptest::sample::select(alphabet.split(' ').collect::<Vec<_>>()), 1..5)
            .prop_map(|levels| levels.join("/"))
    }

    proptest! {
        #[test]
        fn finds_exactly_what_the_filters_say(
            filters in proptest::collection::vec(text("a b + # $s ä"), 1..40),
            removed in proptest::collection::vec(any::<bool>(), 40),
            topic in text("a b c $s ä"),
        ) {
            prop_assume!(!topic.is_empty());
            let mut index = index();
            let mut model = Vec::new();
            for (session, filter) in filters.iter().enumerate() {
                if let Ok(parsed) = Filter::parse(filter) {
                    index.insert(parsed, false, subscriber(session as u32));
                    model.push((session as u32, parsed));
                }
            }
            for (session, filter) in model.clone() {
                if removed[session as usize] {
                    prop_assert!(index.remove(filter, session));
                    model.retain(|(known, _)| *known != session);
                }
            }
            let parsed = Topic::parse(&topic).unwrap();
            let wanted: Vec<u32> =
                model.iter().filter(|(_, filter)| filter.matches(parsed)).map(|(session, _)| *session).collect();
            prop_assert_eq!(sessions(&index, &topic), wanted);
            for (session, filter) in model {
                index.remove(filter, session);
            }
            prop_assert_eq!((index.nodes.len(), index.edges.len(), index.exact.len() + index.leaves.len(), index.len()), (1, 0, 0, 0));
        }
    }

    #[test]
    fn a_million_filters_that_do_not_match_are_not_looked_at() {
        let mut index = index();
        index.insert(Filter::parse("site/+/pump/7").unwrap(), false, subscriber(0));
        let mut matches = Matches::default();
        let mut visited = Vec::new();
        for count in [1_000, 1_000_000] {
            for at in index.len() as u32..count {
                let filter = match at % 4 {
                    0 => format!("other/{at}/+/x"),
                    1 => format!("site/{at}/valve/#"),
                    2 => format!("site/hall/pump/{at}/+"),
                    _ => format!("exact/{at}"),
                };
                index.insert(Filter::parse(&filter).unwrap(), false, subscriber(at));
            }
            index.find(Topic::parse("site/hall/pump/7").unwrap(), &mut matches);
            assert_eq!(matches.found.len(), 1);
            visited.push(matches.visited);
        }
        assert_eq!(visited[0], visited[1], "nodes looked at, with a thousand and with a million");
        // Taking them away leaves nothing, and a hundred thousand subscribers of one filter go quickly.
        let one = Filter::parse("all/#").unwrap();
        (0..100_000).for_each(|session| index.insert(one, false, subscriber(session)));
        assert!((0..100_000).all(|session| index.remove(one, session)));
        assert_eq!(index.len(), 1_000_000);
    }

    #[test]
    fn a_topic_of_65535_slashes_neither_recurses_nor_blows_up() {
        let mut index = index();
        index.insert(Filter::parse(&"+/".repeat(32_767)).unwrap(), false, subscriber(1));
        index.insert(Filter::parse("#").unwrap(), false, subscriber(2));
        assert_eq!(sessions(&index, &"/".repeat(65_535)), [2]);
        assert_eq!(sessions(&index, &"/".repeat(32_767)), [1, 2]);
    }
}
