//! The few pieces of HTML that the page is made of.

use std::fmt::{Display, Write};

/// Text as it may stand in HTML, also in an attribute.
pub fn escaped(text: impl Display) -> String {
    let text = text.to_string();
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// An element. `inner` is HTML.
pub fn element(tag: &str, attributes: &[(&str, &str)], inner: impl Display) -> String {
    let mut out = format!("<{tag}");
    for (name, value) in attributes {
        let _ = write!(out, " {name}=\"{}\"", escaped(value));
    }
    let _ = writeln!(out, ">{inner}</{tag}>");
    out
}

/// A paragraph of plain text.
pub fn paragraph(text: impl Display) -> String {
    element("p", &[], escaped(text))
}

/// A heading of that level.
pub fn heading(level: u8, text: impl Display) -> String {
    element(&format!("h{level}"), &[], escaped(text))
}

/// A cell of a table.
pub struct Cell {
    /// HTML.
    html: String,
    class: &'static str,
}

impl Cell {
    /// Plain text that is a number, or is aligned like one.
    pub fn number(text: impl Display) -> Cell {
        Cell {
            html: escaped(text),
            class: "n",
        }
    }

    /// Plain text.
    pub fn text(text: impl Display) -> Cell {
        Cell {
            html: escaped(text),
            class: "",
        }
    }

    /// Plain text of more than some words, which has a block to itself on narrow pages.
    pub fn prose(text: impl Display) -> Cell {
        Cell {
            html: escaped(text),
            class: "prose",
        }
    }

    /// With a second, smaller line.
    pub fn under(mut self, text: impl Display) -> Cell {
        self.html += element("span", &[("class", "sub")], escaped(text)).trim_end();
        self
    }

    /// Said to be good or bad.
    pub fn judged(mut self, is_good: bool) -> Cell {
        let class = if is_good { "good" } else { "bad" };
        self.html = element("span", &[("class", class)], &self.html)
            .trim_end()
            .to_owned();
        self
    }
}

/// A row of a table, with its heading.
pub struct Row {
    /// The heading.
    pub head: Cell,
    /// One for each further column.
    pub cells: Vec<Cell>,
    /// Whether the row is Urge's.
    pub ours: bool,
}

/// A table. On narrow pages each row is a block, in which each cell has its column's name.
pub fn table(columns: &[&str], rows: &[Row]) -> String {
    let mut head = String::new();
    for (at, name) in columns.iter().enumerate() {
        let is_number = rows
            .first()
            .and_then(|row| row.cells.get(at.checked_sub(1)?))
            .is_some_and(|cell| cell.class == "n");
        let class = if is_number { "n" } else { "" };
        head += &element("th", &[("scope", "col"), ("class", class)], escaped(name));
    }
    let mut body = String::new();
    for row in rows {
        let mut inner = element("th", &[("scope", "row")], &row.head.html);
        for (cell, name) in row.cells.iter().zip(&columns[1..]) {
            let attributes = [("class", cell.class), ("data-of", *name)];
            // One child: a block's line has the heading and the value side by side.
            let value = element("span", &[], &cell.html);
            inner += &element("td", &attributes, value.trim_end());
        }
        let class = if row.ours { "ours" } else { "" };
        body += &element("tr", &[("class", class)], inner);
    }
    let head = element("thead", &[], element("tr", &[], head));
    element("table", &[], head + &element("tbody", &[], body))
}
