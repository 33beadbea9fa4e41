//! A strict look at an HTML page: well-formed as XML, and nothing in it that reaches outside or runs.

/// Panics unless `text` is a page as we write them: every tag closed in order, every attribute quoted, every `&` an entity, no
/// script, no address.
pub fn check(text: &str) {
    assert!(text.starts_with("<!DOCTYPE html>\n") && text.ends_with("</html>\n"));
    let (mut open, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find('<') {
        check_text(&rest[..at]);
        rest = &rest[at..];
        if let Some(body) = rest.strip_prefix("<!--") {
            rest = &body[body.find("-->").expect("a comment has an end") + 3..];
            continue;
        }
        let end = rest.find('>').expect("a tag has an end");
        let tag = &rest[1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "</{name}> before {:?}", &rest[..rest.len().min(80)]);
        } else if !tag.starts_with('!') {
            let (name, closed) = check_tag(tag);
            assert!(!["script", "link", "iframe", "object", "base"].contains(&name), "<{name}>");
            if !closed {
                open.push(name);
            }
        }
    }
    check_text(rest);
    assert!(open.is_empty(), "not closed: {open:?}");
    for word in ["http:", "https:", "//", "@import", "url(", "javascript:"] {
        // Base64 has slashes.
        let outside: Vec<&str> = text
            .split("data:image/png;base64,")
            .enumerate()
            .map(|(i, part)| if i == 0 { part } else { &part[part.find('"').unwrap()..] })
            .collect();
        assert!(outside.iter().all(|part| !part.contains(word)), "the page contains {word}");
    }
}

fn check_text(text: &str) {
    for (at, _) in text.match_indices('&') {
        let entity = text[at + 1..].split(';').next().unwrap();
        assert!(["amp", "lt", "gt", "quot", "#39"].contains(&entity), "&{entity}");
    }
}

/// The name of a tag, and whether it closes itself.
fn check_tag(tag: &str) -> (&str, bool) {
    let closed = tag.ends_with('/');
    let tag = tag.strip_suffix('/').unwrap_or(tag);
    let (name, mut rest) = tag.split_once(' ').unwrap_or((tag, ""));
    assert!(name.chars().all(|c| c.is_ascii_alphanumeric()) && !name.is_empty(), "<{tag}>");
    let mut names = Vec::new();
    while !rest.is_empty() {
        let (attribute, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("<{tag}>"));
        assert!(attribute.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "<{tag}>");
        assert!(!names.contains(&attribute) && !attribute.starts_with("on"), "<{tag}>");
        names.push(attribute);
        let (value, behind) = value.split_once('"').unwrap_or_else(|| panic!("<{tag}>"));
        check_text(value);
        // Of a coordinate.
        assert!(!value.contains("NaN"), "<{tag}>");
        rest = behind.strip_prefix(' ').unwrap_or(behind);
        assert!(rest.is_empty() || behind.starts_with(' '), "<{tag}>");
    }
    (name, closed)
}

/// The numbers in the cells of the table of class `class`, a row of the table each.
pub fn rows_of(text: &str, class: &str) -> Vec<Vec<u64>> {
    let table = text.split(&format!("<table class=\"{class}\">")).nth(1).expect("the table is there");
    let body = table.split("</table>").next().unwrap().split("<tbody>").nth(1).unwrap();
    let cells = |row: &str| {
        let cells = row.split("<td").skip(1).map(|cell| cell.split_once('>').unwrap().1);
        cells.map(|cell| cell.split('<').next().unwrap().parse().unwrap()).collect()
    };
    body.split("<tr>").skip(1).map(cells).collect()
}
