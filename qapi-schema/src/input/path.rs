//! Where in its input a value stands: `a.b[0].c`.

use std::fmt;

/// A path, as a chain on the stack: built only when an error prints it.
#[derive(Clone, Copy, Debug)]
pub enum Path<'a> {
    /// The whole input.
    Root,
    /// A member of an object.
    Member(&'a Path<'a>, &'a str),
    /// An element of an array.
    Index(&'a Path<'a>, usize),
}

impl Path<'_> {
    /// The name of the member, if it is one.
    pub fn leaf(&self) -> Option<&str> {
        match self {
            Self::Member(_, name) => Some(name),
            Self::Root | Self::Index(..) => None,
        }
    }

    /// How many members and elements lead here.
    pub fn depth(&self) -> usize {
        let mut depth = 0;
        let mut at = self;
        while let Self::Member(of, _) | Self::Index(of, _) = at {
            depth += 1;
            at = of;
        }
        depth
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Member(Self::Root, name) => f.write_str(name),
            Self::Member(of, name) => write!(f, "{of}.{name}"),
            Self::Index(of, index) => write!(f, "{of}[{index}]"),
        }
    }
}
