//! Which subscriptions match a topic.
//!
//! Filters without a wildcard lie in one table by their text. The others form a tree of levels
//! whose edges lie in one table too, keyed by parent and level, so that a node costs little and a
//! topic is matched by looking up only what can match. Nothing here recurses.

use hashbrown::{HashMap, HashTable};

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

/// A shared subscription's members (MQTT 5 section 4.8.2).
#[derive(Debug)]
pub(super) struct Group {
    name: Box<str>,
    pub(super) members: Vec<Subscriber>,
    /// Whose turn it is.
    pub(super) turn: usize,
}

#[derive(Default, Debug)]
struct Leaf {
    subscribers: Vec<Subscriber>,
    #[expect(clippy::box_collection, reason = "most leaves have no group: one pointer instead of three words")]
    groups: Option<Box<Vec<Group>>>,
}

impl Leaf {
    fn is_empty(&self) -> bool {
        self.subscribers.is_empty() && self.groups.is_none()
    }

    /// Adds a session's subscription, or replaces the one that is `known` to be there.
    fn insert(&mut self, share: Option<&str>, known: bool, subscriber: Subscriber) {
        let list = match share {
            None => &mut self.subscribers,
            Some(name) => {
                let groups = self.groups.get_or_insert_default();
                let at = groups.iter().position(|group| &*group.name == name).unwrap_or_else(|| {
                    groups.push(Group { name: name.into(), members: Vec::new(), turn: 0 });
                    groups.len() - 1
                });
                &mut groups[at].members
            }
        };
        // A new one needs no search: a hundred thousand may have the same filter.
        let there = if known { list.iter_mut().find(|old| old.session == subscriber.session) } else { None };
        match there {
            Some(old) => *old = subscriber,
            None => list.push(subscriber),
        }
    }

    fn remove(&mut self, share: Option<&str>, session: u32) -> bool {
        let Some(name) = share else { return remove_session(&mut self.subscribers, session) };
        let Some(groups) = &mut self.groups else { return false };
        let Some(at) = groups.iter().position(|group| &*group.name == name) else { return false };
        let removed = remove_session(&mut groups[at].members, session);
        if groups[at].members.is_empty() {
            groups.remove(at);
        }
        if groups.is_empty() {
            self.groups = None;
        }
        removed
    }
}

fn remove_session(list: &mut Vec<Subscriber>, session: u32) -> bool {
    match list.iter().position(|known| known.session == session) {
        Some(at) => {
            list.remove(at);
            true
        }
        None => false,
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
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Exact,
    Here(u32),
    Multi(u32),
}

#[derive(Debug)]
pub(super) struct Index {
    hasher: ahash::RandomState,
    exact: HashMap<Box<str>, Leaf, ahash::RandomState>,
    nodes: slab::Slab<Node>,
    edges: HashTable<u32>,
    count: usize,
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
        Index { exact: HashMap::with_hasher(hasher.clone()), hasher, nodes, edges: HashTable::new(), count: 0 }
    }

    /// Subscriptions of all sessions.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// `known`: the session has this filter already, and it is replaced.
    pub(super) fn insert(&mut self, filter: Filter<'_>, known: bool, subscriber: Subscriber) {
        let leaf = if filter.has_wildcard() {
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
        } else {
            self.exact.entry_ref(filter.path()).or_default()
        };
        leaf.insert(filter.share(), known, subscriber);
        self.count += usize::from(!known);
    }

    /// `true` if the session had this filter.
    pub(super) fn remove(&mut self, filter: Filter<'_>, session: u32) -> bool {
        let removed = if filter.has_wildcard() {
            let mut node = ROOT;
            let mut multi = false;
            for level in filter.levels() {
                if level == "#" {
                    multi = true;
                } else {
                    match self.child(node, level) {
                        Some(child) => node = child,
                        None => return false,
                    }
                }
            }
            let here = &mut self.nodes[node as usize];
            let leaf = if multi { &mut here.multi } else { &mut here.here };
            let removed = leaf.remove(filter.share(), session);
            self.prune(node);
            removed
        } else {
            let Some(leaf) = self.exact.get_mut(filter.path()) else { return false };
            let removed = leaf.remove(filter.share(), session);
            if leaf.is_empty() {
                self.exact.remove(filter.path());
            }
            removed
        };
        self.count -= usize::from(removed);
        removed
    }

    /// Finds what matches `topic`; `matches` is scratch space and keeps its room.
    pub(super) fn find(&self, topic: Topic<'_>, matches: &mut Matches) {
        matches.found.clear();
        if self.exact.contains_key(topic.as_str()) {
            matches.found.push(Place::Exact);
        }
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
        while let Some((at, depth)) = matches.stack.pop() {
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
    pub(super) fn subscribers<'a>(
        &'a self,
        topic: Topic<'_>,
        matches: &Matches,
        mut each: impl FnMut(&'a [Subscriber]),
    ) {
        for place in &matches.found {
            each(&self.leaf(topic, *place).subscribers);
        }
    }

    /// Whether any of what was found is a shared subscription.
    pub(super) fn has_groups(&self, topic: Topic<'_>, matches: &Matches) -> bool {
        matches.found.iter().any(|place| self.leaf(topic, *place).groups.is_some())
    }

    /// Calls `each` with every shared subscription found.
    pub(super) fn groups(&mut self, topic: Topic<'_>, matches: &Matches, mut each: impl FnMut(&mut Group)) {
        for place in &matches.found {
            let leaf = match *place {
                Place::Exact => self.exact.get_mut(topic.as_str()),
                Place::Here(node) => Some(&mut self.nodes[node as usize].here),
                Place::Multi(node) => Some(&mut self.nodes[node as usize].multi),
            };
            for group in leaf.and_then(|leaf| leaf.groups.as_mut()).into_iter().flat_map(|groups| groups.iter_mut()) {
                each(group);
            }
        }
    }

    fn leaf(&self, topic: Topic<'_>, place: Place) -> &Leaf {
        match place {
            Place::Exact => &self.exact[topic.as_str()],
            Place::Here(node) => &self.nodes[node as usize].here,
            Place::Multi(node) => &self.nodes[node as usize].multi,
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
        index.subscribers(topic, &matches, |list| found.extend(list.iter().map(|subscriber| subscriber.session)));
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
            prop_assert_eq!((index.nodes.len(), index.edges.len(), index.exact.len(), index.len()), (1, 0, 0, 0));
        }
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
