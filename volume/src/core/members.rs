//! A set of a volume's stores, by position in its stride set.

use std::fmt;

/// Most stores a volume may live on: positions are bits of one word, as in stamps.
pub const STRIDE_MAX: usize = 64;

/// A store's position in the volume's stride set, below [`STRIDE_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u8);

impl Position {
    /// Panics from [`STRIDE_MAX`] on.
    pub fn new(index: usize) -> Self {
        assert!(
            index < STRIDE_MAX,
            "position {index} of at most {STRIDE_MAX} stores"
        );
        Self(u8::try_from(index).expect("below 64"))
    }

    /// As an index into arrays by position.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A set of positions.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Members(pub u64);

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(Position::index))
            .finish()
    }
}

impl fmt::Display for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl FromIterator<Position> for Members {
    fn from_iter<T: IntoIterator<Item = Position>>(positions: T) -> Self {
        positions.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl Members {
    /// Nobody.
    pub const EMPTY: Self = Self(0);

    /// Just one.
    pub fn one(member: Position) -> Self {
        Self(1 << member.0)
    }

    /// This set and one more.
    #[must_use]
    pub fn with(self, member: Position) -> Self {
        self.or(Self::one(member))
    }

    /// This set without one.
    #[must_use]
    pub fn without(self, member: Position) -> Self {
        self.minus(Self::one(member))
    }

    /// Union.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Intersection.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Difference.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Adds one.
    pub fn insert(&mut self, member: Position) {
        *self = self.with(member);
    }

    /// Takes one out.
    pub fn remove(&mut self, member: Position) {
        *self = self.without(member);
    }

    /// Whether the position is a member.
    pub fn has(self, member: Position) -> bool {
        self.0 & (1 << member.0) != 0
    }

    /// Whether every member of `other` is one of this set.
    pub const fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// True if nobody is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are.
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Members in ascending order.
    pub fn iter(self) -> impl Iterator<Item = Position> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let index = rest.trailing_zeros();
            rest &= rest - 1;
            Some(Position(u8::try_from(index).expect("below 64")))
        })
    }
}
