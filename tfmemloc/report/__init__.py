"""Any result as text, as Markdown and as a page."""

from tfmemloc.report.html import write_html, write_template
from tfmemloc.report.markdown import write_markdown
from tfmemloc.report.section import Card, Section, section_of, to_png
from tfmemloc.report.seeds import SeedSummary
from tfmemloc.report.text import text_table
