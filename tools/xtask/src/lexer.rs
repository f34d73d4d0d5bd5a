//! As much of Rust's grammar as the checks need: words, paths and test modules, without what
//! comments and literals say.

/// A token with its line, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) line: u32,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Word(String),
    /// `::`
    Sep,
    /// Any other character that is no space.
    Sign(char),
}

impl Token {
    pub(crate) fn is_word(&self, word: &str) -> bool {
        matches!(&self.kind, Kind::Word(w) if w == word)
    }

    fn is_sign(&self, sign: char) -> bool {
        self.kind == Kind::Sign(sign)
    }
}

/// A path as written, with `use` trees taken apart: `std::{fs, io::Read}` is two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mention {
    pub(crate) line: u32,
    pub(crate) segments: Vec<String>,
}

/// All tokens of a source text.
pub(crate) fn tokens(text: &str) -> Vec<Token> {
    let mut reader = Reader {
        chars: text.chars().collect(),
        at: 0,
        line: 1,
        out: Vec::new(),
    };
    while reader.at < reader.chars.len() {
        reader.step();
    }
    reader.out
}

struct Reader {
    chars: Vec<char>,
    at: usize,
    line: u32,
    out: Vec<Token>,
}

impl Reader {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn advance(&mut self) -> char {
        let c = self.peek(0);
        self.at += 1;
        self.line += u32::from(c == '\n');
        c
    }

    fn push(&mut self, line: u32, kind: Kind) {
        self.out.push(Token { line, kind });
    }

    fn step(&mut self) {
        let (line, c) = (self.line, self.peek(0));
        match (c, self.peek(1)) {
            ('/', '/') => self.skip_line(),
            ('/', '*') => self.skip_block(),
            ('"', _) => self.skip_string(),
            ('\'', _) => self.skip_char_or_lifetime(),
            ('r' | 'b' | 'c', _) if self.at_prefixed_literal() => self.skip_prefixed_literal(),
            (':', ':') => {
                self.at += 2;
                self.push(line, Kind::Sep);
            }
            _ if c.is_alphanumeric() || c == '_' => {
                let mut word = String::new();
                while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
                    word.push(self.advance());
                }
                self.push(line, Kind::Word(word));
            }
            _ => {
                self.advance();
                if !c.is_whitespace() {
                    self.push(line, Kind::Sign(c));
                }
            }
        }
    }

    fn skip_line(&mut self) {
        while self.at < self.chars.len() && self.peek(0) != '\n' {
            self.at += 1;
        }
    }

    fn skip_block(&mut self) {
        let mut depth = 0_u32;
        while self.at < self.chars.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => depth += 1,
                ('*', '/') => depth -= 1,
                _ => {
                    self.advance();
                    continue;
                }
            }
            self.at += 2;
            if depth == 0 {
                return;
            }
        }
    }

    fn skip_string(&mut self) {
        self.advance();
        while self.at < self.chars.len() {
            match self.advance() {
                '\\' => {
                    self.advance();
                }
                '"' => return,
                _ => {}
            }
        }
    }

    /// `'a'` and `'\n'` are skipped whole; of a lifetime only the quote is.
    fn skip_char_or_lifetime(&mut self) {
        if self.peek(1) == '\\' {
            self.at += 3;
            while self.at < self.chars.len() && self.advance() != '\'' {}
        } else if self.peek(2) == '\'' {
            self.at += 3;
        } else {
            self.at += 1;
        }
    }

    /// `b"`, `b'`, `c"`, `r"`, `r#…"`, `br"`, `br#…"`; `r#word` is a word.
    fn at_prefixed_literal(&self) -> bool {
        let raw = match (self.peek(0), self.peek(1)) {
            ('b', '\'' | '"') | ('c', '"') => return true,
            ('r', _) => 1,
            ('b' | 'c', 'r') => 2,
            _ => return false,
        };
        let hashes = (raw..).take_while(|&i| self.peek(i) == '#').count();
        self.peek(raw + hashes) == '"'
    }

    fn skip_prefixed_literal(&mut self) {
        while matches!(self.peek(0), 'b' | 'c') {
            self.at += 1;
        }
        match self.peek(0) {
            '"' => self.skip_string(),
            '\'' => self.skip_char_or_lifetime(),
            _ => self.skip_raw_string(),
        }
    }

    fn skip_raw_string(&mut self) {
        self.at += 1;
        let hashes = (0..).take_while(|&i| self.peek(i) == '#').count();
        self.at += hashes + 1;
        while self.at < self.chars.len() {
            if self.advance() == '"' && (0..hashes).all(|i| self.peek(i) == '#') {
                self.at += hashes;
                return;
            }
        }
    }
}

/// The tokens outside of `#[cfg(test)]` items.
pub(crate) fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if starts_test_item(&tokens[at..]) {
            at = end_of_item(tokens, at);
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// `#[cfg(test)]`, also `#[cfg(all(test, …))]`; never `not(test)`.
fn starts_test_item(tokens: &[Token]) -> bool {
    let starts = tokens.len() > 3
        && tokens[0].is_sign('#')
        && tokens[1].is_sign('[')
        && tokens[2].is_word("cfg");
    if !starts {
        return false;
    }
    let attribute = tokens[2..].iter().take_while(|t| !t.is_sign(']'));
    let (mut test, mut not) = (false, false);
    for token in attribute {
        test |= token.is_word("test");
        not |= token.is_word("not") || token.is_word("any");
    }
    test && !not
}

/// After the first `{…}` or `;` that is outside of brackets.
fn end_of_item(tokens: &[Token], start: usize) -> usize {
    let (mut braces, mut brackets) = (0_u32, 0_u32);
    for (at, token) in tokens.iter().enumerate().skip(start) {
        match token.kind {
            Kind::Sign('[' | '(') => brackets += 1,
            Kind::Sign(']' | ')') => brackets = brackets.saturating_sub(1),
            Kind::Sign('{') => braces += 1,
            Kind::Sign('}') => {
                braces = braces.saturating_sub(1);
                if braces == 0 && brackets == 0 {
                    return at + 1;
                }
            }
            Kind::Sign(';') if braces == 0 && brackets == 0 => return at + 1,
            Kind::Word(_) | Kind::Sep | Kind::Sign(_) => {}
        }
    }
    tokens.len()
}

/// Every path in the tokens, single words included.
pub(crate) fn mentions(tokens: &[Token]) -> Vec<Mention> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].kind {
            Kind::Word(_) => at = path(tokens, at, &[], &mut found),
            Kind::Sep | Kind::Sign(_) => at += 1,
        }
    }
    found
}

/// Read the path or use tree at `at`; returns where it ends.
fn path(tokens: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<Mention>) -> usize {
    let line = tokens.get(at).map_or(0, |t| t.line);
    let mut segments = prefix.to_vec();
    loop {
        match tokens.get(at).map(|t| &t.kind) {
            Some(Kind::Word(word)) => segments.push(word.clone()),
            Some(Kind::Sign('{')) if segments.len() > prefix.len() || !prefix.is_empty() => {
                return tree(tokens, at + 1, &segments, found);
            }
            _ => break,
        }
        at += 1;
        match tokens.get(at).map(|t| &t.kind) {
            Some(Kind::Sep) => at += 1,
            _ => break,
        }
    }
    if segments.len() > prefix.len() {
        found.push(Mention { line, segments });
    }
    at
}

/// The inside of `{…}` in a use tree.
fn tree(tokens: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<Mention>) -> usize {
    while let Some(token) = tokens.get(at) {
        match token.kind {
            Kind::Sign('}') => return at + 1,
            Kind::Word(_) => at = path(tokens, at, prefix, found),
            Kind::Sep | Kind::Sign(_) => at += 1,
        }
    }
    at
}

#[cfg(test)]
mod test {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        mentions(&tokens(text))
            .into_iter()
            .map(|m| m.segments.join("::"))
            .collect()
    }

    #[test]
    fn use_trees_are_taken_apart() {
        let text = "use std::{fs, io::{self, Read}, time::Instant as Now};";
        let expected = [
            "use",
            "std::fs",
            "std::io::self",
            "std::io::Read",
            "std::time::Instant",
            "std::as",
        ];
        assert_eq!(paths(text)[..5], expected[..5]);
    }

    #[test]
    fn comments_and_literals_say_nothing() {
        let text = "// std::fs\n/* std::net /* tokio */ */ \"std::io \\\" x\" r#\"a \" tokio\"# b'\\'' '\"' 'x' a";
        assert_eq!(paths(text), ["a"]);
    }

    #[test]
    fn lifetimes_and_raw_words_are_no_literals() {
        assert_eq!(
            paths("fn f<'a>(x: &'a T) r#type"),
            ["fn", "f", "a", "x", "a", "T", "r", "type"]
        );
    }

    #[test]
    fn lines_are_counted_through_everything_skipped() {
        let all = tokens("/* a\n b */ \"x\ny\"\nword");
        assert_eq!(
            all,
            [Token {
                line: 4,
                kind: Kind::Word("word".into())
            }]
        );
    }

    #[test]
    fn test_items_are_left_out_and_nothing_else() {
        let text = "a #[cfg(test)] mod test { fn f() { b } } c #[cfg(test)] use x::y; d \
                    #[cfg(not(test))] fn e() {}";
        let kept = without_tests(&tokens(text));
        let words: Vec<String> = mentions(&kept)
            .into_iter()
            .map(|m| m.segments.join("::"))
            .collect();
        assert_eq!(words, ["a", "c", "d", "cfg", "not", "test", "fn", "e"]);
    }
}
