//! A strict pull reader for the JSON of a safetensors header: objects, arrays, strings and unsigned integers.
//!
//! It refuses what the header has no use for (floats, signs, literals) and never recurses: the caller pulls what the
//! schema says, so nesting cannot exhaust the stack. A general parser would accept duplicate keys and keep the last
//! one, which is exactly how two readers come to see two different files.
#![forbid(unsafe_code)]

/// A failure is told as text; the caller adds the file.
pub(super) type Outcome<T> = Result<T, String>;

/// Reads JSON from the front of a text.
pub(super) struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Reader { text, at: 0 }
    }

    /// A message that says where the reader stands.
    pub(super) fn fail<T>(&self, what: impl std::fmt::Display) -> Outcome<T> {
        Err(format!("header, byte {}: {what}", self.at))
    }

    fn expected<T>(&self, what: &str) -> Outcome<T> {
        match self.text[self.at..].chars().next() {
            Some(c) => self.fail(format_args!("expected {what}, found {c:?}")),
            None => self.fail(format_args!("expected {what}, found the end")),
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        self.skip_space();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// An object; `member` is called after each `"key":` and reads the value.
    pub(super) fn object(&mut self, mut member: impl FnMut(&mut Self, String) -> Outcome<()>) -> Outcome<()> {
        if !self.take(b'{') {
            return self.expected("an object");
        }
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            let key = self.string()?;
            if !self.take(b':') {
                return self.expected("':'");
            }
            member(self, key)?;
            if self.take(b'}') {
                return Ok(());
            }
            if !self.take(b',') {
                return self.expected("',' or '}'");
            }
        }
    }

    /// An array of unsigned integers, at most `limit` of them.
    pub(super) fn unsigned_array(&mut self, limit: usize) -> Outcome<Vec<u64>> {
        if !self.take(b'[') {
            return self.expected("an array");
        }
        let mut items = Vec::new();
        if self.take(b']') {
            return Ok(items);
        }
        loop {
            if items.len() == limit {
                return self.fail(format_args!("expected at most {limit} numbers, found more"));
            }
            items.push(self.unsigned()?);
            if self.take(b']') {
                return Ok(items);
            }
            if !self.take(b',') {
                return self.expected("',' or ']'");
            }
        }
    }

    fn unsigned(&mut self) -> Outcome<u64> {
        self.skip_space();
        let start = self.at;
        let mut value = 0u64;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            let next = value.checked_mul(10).and_then(|v| v.checked_add(u64::from(digit - b'0')));
            let Some(next) = next else {
                return self.fail("the number does not fit 64 bits");
            };
            value = next;
            self.at += 1;
        }
        match self.at - start {
            0 => return self.expected("an unsigned integer"),
            1 => {}
            _ if self.text.as_bytes()[start] == b'0' => {
                return self.fail("a number with leading zeros");
            }
            _ => {}
        }
        match self.peek() {
            Some(b'.' | b'e' | b'E') => self.expected("an integer"),
            _ => Ok(value),
        }
    }

    /// A string, with its escapes resolved.
    pub(super) fn string(&mut self) -> Outcome<String> {
        if !self.take(b'"') {
            return self.expected("a string");
        }
        let mut value = String::new();
        loop {
            let rest = &self.text[self.at..];
            // Everything up to the next special byte is copied in one go; specials are ASCII, so the cut is at a
            // character boundary.
            let plain = rest.bytes().position(|b| b == b'"' || b == b'\\' || b < 0x20).unwrap_or(rest.len());
            value.push_str(&rest[..plain]);
            self.at += plain;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(value);
                }
                Some(b'\\') => {
                    self.at += 1;
                    value.push(self.escape()?);
                }
                Some(_) => return self.fail("a control character in a string"),
                None => return self.expected("'\"'"),
            }
        }
    }

    fn escape(&mut self) -> Outcome<char> {
        let c = match self.peek() {
            Some(c @ (b'"' | b'\\' | b'/')) => c as char,
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                return self.unicode();
            }
            _ => return self.expected("an escape"),
        };
        self.at += 1;
        Ok(c)
    }

    fn unicode(&mut self) -> Outcome<char> {
        let first = self.four_hex()?;
        let code = if (0xD800..0xDC00).contains(&first) {
            if !self.text[self.at..].starts_with("\\u") {
                return self.expected("the second half of a surrogate pair");
            }
            self.at += 2;
            let second = self.four_hex()?;
            if !(0xDC00..0xE000).contains(&second) {
                return self.fail("half a surrogate pair");
            }
            0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)
        } else {
            first
        };
        match char::from_u32(code) {
            Some(c) => Ok(c),
            None => self.fail("half a surrogate pair"),
        }
    }

    fn four_hex(&mut self) -> Outcome<u32> {
        let mut value = 0;
        for _ in 0..4 {
            let Some(digit) = self.peek().and_then(|b| (b as char).to_digit(16)) else {
                return self.expected("a hexadecimal digit");
            };
            value = value * 16 + digit;
            self.at += 1;
        }
        Ok(value)
    }

    /// The end: nothing may follow but the spaces that pad a header.
    pub(super) fn end(&mut self) -> Outcome<()> {
        self.at = self.text.len() - self.text[self.at..].trim_start_matches(' ').len();
        if self.at < self.text.len() { self.expected("nothing but spaces after the object") } else { Ok(()) }
    }
}

/// Appends `value` as a JSON string.
pub(super) fn push_string(out: &mut String, value: &str) {
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Outcome<String> {
        let mut reader = Reader::new(text);
        let value = reader.string()?;
        reader.end()?;
        Ok(value)
    }

    #[test]
    fn strings_resolve_their_escapes() {
        for (text, want) in [
            (r#""""#, ""),
            (r#""ab""#, "ab"),
            (r#""a\"\\\/\b\f\n\r\t""#, "a\"\\/\u{8}\u{c}\n\r\t"),
            (r#""\u0061\u00e9é""#, "aéé"),
            (r#""\ud83d\ude00""#, "😀"),
            (r#""\u0000""#, "\0"),
        ] {
            assert_eq!(string(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn bad_strings_are_errors() {
        for text in [
            "",
            "a",
            "\"",
            "\"a",
            r#""\"#,
            r#""\x""#,
            r#""\u12""#,
            r#""\u12g4""#,
            r#""\ud83d""#,
            r#""\ud83d\n""#,
            r#""\ud83d\u0041""#,
            r#""\ude00""#,
            "\"\n\"",
            "\"\0\"",
            r#""a" b"#,
            "\"a\"\n",
        ] {
            assert!(string(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn numbers_are_unsigned_and_exact() {
        let read = |text: &str| Reader::new(text).unsigned_array(3);
        assert_eq!(read("[]"), Ok(vec![]));
        assert_eq!(read(" [ 0 , 18446744073709551615 ] "), Ok(vec![0, u64::MAX]));
        for text in [
            "",
            "[",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "[-1]",
            "[+1]",
            "[1.0]",
            "[1e3]",
            "[01]",
            "[00]",
            "[18446744073709551616]",
            "[1,2,3,4]",
            "[\"1\"]",
            "[[1]]",
            "[null]",
            "[true]",
            "{}",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn written_strings_read_back() {
        for value in ["", "plain", "\"\\/\u{8}\u{c}\n\r\t\u{1}\u{1f}\u{7f}", "é😀"] {
            let mut text = String::new();
            push_string(&mut text, value);
            assert_eq!(string(&text).as_deref(), Ok(value));
        }
    }
}
