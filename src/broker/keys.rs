use std::hash::BuildHasher;
use std::sync::Arc;

/// A hash table's keys, shared: what each session has one of is to be small.
#[derive(Clone, Debug)]
pub(super) struct Keys(Arc<ahash::RandomState>);

impl Keys {
    pub(super) fn new(hasher: ahash::RandomState) -> Keys {
        Keys(Arc::new(hasher))
    }
}

impl BuildHasher for Keys {
    type Hasher = ahash::AHasher;

    fn build_hasher(&self) -> ahash::AHasher {
        self.0.build_hasher()
    }
}
