//! The frame of a page, and the pieces that it is put together from. All text goes through [`escape`].

#![forbid(unsafe_code)]

use std::fmt::Write as _;

use super::chart::number;
use super::examine::Example;
use super::picture::base64;

/// How each page begins: by this a report is told from a file of someone else.
pub(super) const HEAD: &str = "<!DOCTYPE html>\n<!-- made by warpsmith report -->\n";

/// More classes than this are not shown as a matrix.
const MAX_MATRIX: usize = 30;
/// The confusions that are listed instead.
const MAX_CONFUSIONS: usize = 30;

const STYLE: &str = include_str!("style.css");

/// Text as it may stand between tags and in attributes. Control characters, which XML cannot hold, become spaces.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A page in the making.
pub(crate) struct Page {
    text: String,
}

impl Page {
    pub(crate) fn new(title: &str, subtitle: &str) -> Page {
        let (title, subtitle) = (escape(title), escape(subtitle));
        Page {
            text: format!(
                "{HEAD}<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
                 <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
                 <meta name=\"color-scheme\" content=\"light dark\"/>\n\
                 <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
                 <h1>{title}</h1>\n<p class=\"subtitle\">{subtitle}</p>\n"
            ),
        }
    }

    pub(crate) fn finish(self) -> String {
        self.text + "</main>\n</body>\n</html>\n"
    }

    /// Writing to a String cannot fail.
    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        let _ = self.text.write_fmt(text);
    }

    pub(crate) fn heading(&mut self, text: &str) {
        self.push(format_args!("<h2>{}</h2>\n", escape(text)));
    }

    pub(crate) fn paragraph(&mut self, text: &str) {
        self.push(format_args!("<p>{}</p>\n", escape(text)));
    }

    /// Named figures, side by side.
    pub(crate) fn figures(&mut self, cells: &[(String, String)]) {
        self.push(format_args!("<dl class=\"figures\">\n"));
        for (name, value) in cells {
            self.push(format_args!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(name), escape(value)));
        }
        self.push(format_args!("</dl>\n"));
    }

    /// Charts, as many side by side as there is room for.
    pub(crate) fn grid(&mut self, charts: impl IntoIterator<Item = String>) {
        self.push(format_args!("<div class=\"charts\">\n"));
        for chart in charts {
            self.push(format_args!("{chart}\n"));
        }
        self.push(format_args!("</div>\n"));
    }

    /// What is shown only to those who ask for it.
    pub(crate) fn details(&mut self, summary: &str, fill: impl FnOnce(&mut Page)) {
        self.push(format_args!("<details>\n<summary>{}</summary>\n", escape(summary)));
        fill(self);
        self.push(format_args!("</details>\n"));
    }

    pub(crate) fn table(&mut self, header: &[String], rows: impl Iterator<Item = Vec<String>>) {
        self.push(format_args!("<div class=\"wide\"><table>\n<thead><tr>"));
        header.iter().for_each(|name| self.push(format_args!("<th>{}</th>", escape(name))));
        self.push(format_args!("</tr></thead>\n<tbody>\n"));
        for row in rows {
            self.push(format_args!("<tr>"));
            row.iter().for_each(|cell| self.push(format_args!("<td>{}</td>", escape(cell))));
            self.push(format_args!("</tr>\n"));
        }
        self.push(format_args!("</tbody>\n</table></div>\n"));
    }

    /// `confusion[true class, answer]`, shaded by the share of the true class's rows.
    pub(crate) fn confusion(&mut self, names: &[String], confusion: &[u64]) {
        let count = names.len();
        if count > MAX_MATRIX {
            return self.confusions(names, confusion);
        }
        self.push(format_args!("<div class=\"wide\"><table class=\"confusion\">\n<thead><tr><th>true</th>"));
        names.iter().for_each(|name| self.push(format_args!("<th>{}</th>", escape(name))));
        self.push(format_args!("<th>found</th></tr></thead>\n<tbody>\n"));
        for (truth, row) in confusion.chunks_exact(count.max(1)).enumerate() {
            let total: u64 = row.iter().sum();
            self.push(format_args!("<tr><th>{}</th>", escape(&names[truth])));
            for (answer, &rows) in row.iter().enumerate() {
                // A square root lets single rows be seen beside hundreds.
                let strength = (rows as f64 / total.max(1) as f64).sqrt() * 0.85;
                let colour = if truth == answer { "var(--right)" } else { "var(--wrong)" };
                let class = if rows == 0 { " class=\"none\"" } else { "" };
                self.push(format_args!(
                    "<td{class} style=\"--share:{:.0}%;--colour:{colour}\">{rows}</td>",
                    strength * 100.0
                ));
            }
            let share = 100.0 * row[truth] as f64 / total as f64;
            let share = if total == 0 { "–".to_owned() } else { format!("{share:.1} %") };
            self.push(format_args!("<th>{share}</th></tr>\n"));
        }
        self.push(format_args!("</tbody>\n</table></div>\n"));
    }

    fn confusions(&mut self, names: &[String], confusion: &[u64]) {
        let count = names.len();
        let mut wrong: Vec<(usize, u64)> = confusion
            .iter()
            .copied()
            .enumerate()
            .filter(|&(at, rows)| rows > 0 && at / count != at % count)
            .collect();
        wrong.sort_by_key(|&(at, rows)| (std::cmp::Reverse(rows), at));
        self.paragraph(&format!("Of {count} classes, the confusions with the most rows:"));
        let header = ["true", "answer", "rows"].map(str::to_owned);
        let rows = wrong.iter().take(MAX_CONFUSIONS);
        let rows: Vec<Vec<String>> = rows
            .map(|&(at, rows)| vec![names[at / count].clone(), names[at % count].clone(), rows.to_string()])
            .collect();
        self.table(&header, rows.into_iter());
    }

    pub(super) fn examples(&mut self, examples: &[Example]) {
        self.push(format_args!("<div class=\"examples\">\n"));
        for example in examples {
            self.push(format_args!("<figure>"));
            let name = escape(&example.name.clone().unwrap_or_else(|| format!("row {}", example.row)));
            if let Some(png) = &example.picture {
                self.push(format_args!(
                    "<img alt=\"{name}\" src=\"data:image/png;base64,{}\"/>",
                    base64(png)
                ));
            }
            let (truth, answer) = (escape(&example.truth), escape(&example.answer));
            self.push(format_args!("<figcaption><b>{name}</b>"));
            match example.probabilities {
                Some((answered, true_class)) => self.push(format_args!(
                    "<span>true {truth} (p {})</span><span{}>answer {answer} (p {})</span>",
                    number(true_class),
                    if truth == answer { "" } else { " class=\"wrong\"" },
                    number(answered)
                )),
                None => self.push(format_args!("<span>true {truth}</span><span>answer {answer}</span>")),
            }
            self.push(format_args!("<span>loss {}</span></figcaption></figure>\n", number(example.loss)));
        }
        self.push(format_args!("</div>\n"));
    }
}
