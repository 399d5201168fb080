use std::fmt;
use std::path::PathBuf;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::Problem;

/// A configuration file with its text, for snippets.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// Line and column, from 1.
    File(usize, usize),
    Environment(String),
}

#[derive(Debug, Clone)]
pub(super) struct Located {
    pub(super) node: Node,
    pub(super) origin: Origin,
}

/// YAML without types: a scalar is the text that it stands for.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Empty,
    Scalar(String),
    List(Vec<Located>),
    Section(Vec<(String, Origin, Located)>),
}

impl Node {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Node::Empty => "nothing",
            Node::Scalar(_) => "a value",
            Node::List(_) => "a list",
            Node::Section(_) => "a section",
        }
    }
}

impl Source {
    pub(super) fn problem(&self, origin: &Origin, what: String) -> Problem {
        match origin {
            Origin::Environment(name) => Problem { place: name.clone(), what, snippet: None, line: 0 },
            Origin::File(line, column) => {
                let place = format!("{}:{line}:{column}", self.path.display());
                let snippet = self.text.lines().nth(line.saturating_sub(1)).map(|text| {
                    let marker = " ".repeat(column.saturating_sub(1));
                    format!("  {line:>4} | {text}\n       | {marker}^")
                });
                Problem { place, what, snippet, line: *line }
            }
        }
    }
}

pub(super) fn parse(source: &Source) -> Result<Located, Problem> {
    if source.text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Located { node: Node::Section(Vec::new()), origin: Origin::File(1, 1) });
    }
    match serde_saphyr::from_str::<Spanned<Node>>(&source.text) {
        Ok(spanned) => Ok(spanned.into()),
        Err(error) => {
            let origin = error
                .location()
                .map_or(Origin::File(1, 1), |place| Origin::File(place.line() as usize, place.column() as usize));
            // Its own snippet comes after the first line; ours is set like all others.
            let text = error.without_snippet().to_string();
            Err(source.problem(&origin, text.lines().next().unwrap_or("it is no YAML").to_owned()))
        }
    }
}

impl From<Spanned<Node>> for Located {
    fn from(spanned: Spanned<Node>) -> Located {
        Located { origin: origin(&spanned.referenced), node: spanned.value }
    }
}

fn origin(place: &serde_saphyr::Location) -> Origin {
    Origin::File(place.line() as usize, place.column() as usize)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        struct NodeVisitor;
        impl<'de> Visitor<'de> for NodeVisitor {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value, a list or a section")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Scalar(value.to_string()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Scalar(value.to_string()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Scalar(value.to_string()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Scalar(value.to_string()))
            }

            fn visit_str<E>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Scalar(value.to_owned()))
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Empty)
            }

            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Empty)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = access.next_element::<Spanned<Node>>()? {
                    list.push(item.into());
                }
                Ok(Node::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
                let mut section = Vec::new();
                while let Some((key, value)) = access.next_entry::<Spanned<String>, Spanned<Node>>()? {
                    section.push((key.value, origin(&key.referenced), value.into()));
                }
                Ok(Node::Section(section))
            }
        }
        deserializer.deserialize_any(NodeVisitor)
    }
}

/// Sets the key that `LIMITS__PACKET_SIZE_MAX` or `LISTENERS__0__PORT` names, in place of the file's.
pub(super) fn overlay(root: &mut Located, variable: &str, key: &str, value: &str, problems: &mut Vec<Problem>) {
    let origin = Origin::Environment(variable.to_owned());
    let mut at = root;
    for part in key.split("__") {
        let name = part.to_ascii_lowercase().replace('_', "-");
        if name.is_empty() {
            let what = "a key is SECTION__KEY with two underscores between".to_owned();
            problems.push(Problem { place: variable.to_owned(), what, snippet: None, line: 0 });
            return;
        }
        let index: Option<usize> = name.parse().ok();
        if let (Some(index), Node::Empty | Node::Scalar(_)) = (index, &at.node)
            && index == 0
        {
            at.node = Node::List(Vec::new());
        }
        at = if matches!(at.node, Node::List(_)) {
            let Node::List(list) = &mut at.node else { unreachable!("matched above") };
            let Some(index) = index.filter(|index| *index <= list.len()) else {
                let what = format!("{part} is no place in a list of {}: they are counted from 0", list.len());
                problems.push(Problem { place: variable.to_owned(), what, snippet: None, line: 0 });
                return;
            };
            if index == list.len() {
                list.push(Located { node: Node::Empty, origin: origin.clone() });
            }
            &mut list[index]
        } else {
            if !matches!(at.node, Node::Section(_)) {
                at.node = Node::Section(Vec::new());
            }
            let Node::Section(section) = &mut at.node else { unreachable!("made one above") };
            let found = section.iter().position(|(key, _, _)| *key == name).unwrap_or_else(|| {
                section.push((name, origin.clone(), Located { node: Node::Empty, origin: origin.clone() }));
                section.len() - 1
            });
            &mut section[found].2
        };
    }
    *at = Located { node: Node::Scalar(value.to_owned()), origin };
}
