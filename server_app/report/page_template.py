"""The template and the style sheet of a report's page; the text that fills them is escaped.

They are Python strings because Flower's bundle takes no .html and no .css files.
"""

PAGE = """\
{% macro rows_of(table) %}
<div class=scroll><table><thead><tr>
{%- for cell in table.head %}<th{{ " class=num" if loop.index0 in table.numbers }}>{{ cell }}</th>{% endfor -%}
</tr></thead><tbody>
{% for row in table.rows %}
<tr>
{%- for cell in row %}<td{{ " class=num" if loop.index0 in table.numbers }}>{{ cell }}</td>{% endfor -%}
</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{{ report.title }}</title><style>{% include "style.css" %}</style></head>
<body><main>
<header><h1>{{ report.title }}</h1><p class=sub>{{ report.subtitle }}</p>
{% if report.resume is none %}
<p class=state>{{ report.state }}</p>
</header>
{% else %}
<p class='state alert' role=alert><strong>{{ report.state }}</strong><br>Continue: <code>{{ report.resume }}</code></p>
</header>
{% endif %}
{% if not report.headline %}
<p class=note>Nothing was evaluated, so there are no headline numbers.</p>
{% else %}
{% if report.verdict %}
<p class=verdict>{{ report.verdict | replace(" %", "&nbsp;%" | safe) }}</p>
{% endif %}
<div class=cards>
{% for estimate in cards %}
{% set amount, _, unit = (estimate | value).partition(" ") %}
<div class='card{{ " accent" if estimate.key in ("after", "gain") }}'><div class=name>{{ estimate.name }}</div>
<div class=value>{{ amount }} <small>{{ unit }}</small></div>
<div class=facts>{{ estimate | facts | join("<br>" | safe) }}</div></div>
{% endfor %}
</div>
{% if metrics.rows %}
{{ rows_of(metrics) }}
{%- endif %}
{% endif %}
{% if report.method %}
<p class=note>{{ report.method }}</p>
{% endif %}
{% if report.plots %}
<div class=plots>
{% for plot in report.plots %}
<figure><h2>{{ plot.title }}</h2>
<div role=img aria-label='{{ plot.title }}'>{{ plot.svg | themed | safe }}</div>
<figcaption>{{ plot.caption }}</figcaption></figure>
{% endfor %}
</div>
{% endif %}
{% if report.answers %}
<section><h2>The same prompts, before and after</h2>
{% for answer in report.answers %}
<article><p class=prompt>{{ answer.prompt | printable }}</p><div class=pair>
<div><h3>Before</h3><p>{{ answer.before | printable or absent }}</p></div>
<div><h3>After</h3><p>{{ answer.after | printable or absent }}</p></div></div></article>
{% endfor %}
</section>
{% endif %}
{% for title, table in report.sections %}
{% if title in unfolded and table.rows | length <= longest_unfolded %}
<section><h2>{{ title }}</h2>
{{ rows_of(table) -}}
</section>
{% else %}
<details><summary>{{ title }}</summary>
{{ rows_of(table) -}}
</details>
{% endif %}
{% endfor %}
</main></body></html>
"""

STYLE = """\
:root { --paper: #fff; --panel: #f5f6f8; --ink: #20242b; --soft: #5c6470; --grid: #d9dde3;
  --alert: #fff3e6; --blue: #0072b2; --red: #d55e00; --green: #009e73; --amber: #e69f00; --sky: #56b4e9; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171c; --panel: #1d2128; --ink: #e6e9ee; --soft: #a2abb8; --grid: #3d444f;
    --alert: #3a2a17; --blue: #3f96d8; --red: #f08a45; --green: #35c69b; --amber: #f0b63c; --sky: #a8def8; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: .8rem; margin: 0; color: var(--soft); font-weight: 600; }
.sub, .note, figcaption, .facts { color: var(--soft); font-size: .875rem; }
.sub { margin: .3rem 0 0; }
.state { margin: .8rem 0 0; }
.alert { background: var(--alert); border-left: 4px solid var(--red); padding: .7rem 1rem; }
.alert { overflow-wrap: anywhere; }
.verdict { font-size: 1.15rem; margin: 1.5rem 0 1rem; max-width: 46em; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: .8rem;
  margin: 1.2rem 0; }
.card { background: var(--panel); border-radius: 8px; padding: .9rem 1rem;
  border-top: 3px solid var(--grid); break-inside: avoid; }
.card.accent { border-top-color: var(--blue); }
.card .name { font-size: .875rem; min-height: 2.6em; line-height: 1.3; }
.card .value { font-size: 1.6rem; font-weight: 650; font-variant-numeric: tabular-nums; white-space: nowrap; }
.card .value small { font-size: 1rem; font-weight: 400; color: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 0 2rem; }
figure { margin: 0; break-inside: avoid; }
figure svg { width: 100%; height: auto; display: block; }
figure svg text { font-family: inherit !important; }
figcaption { margin-top: .2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--grid);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
th.num, td.num { text-align: right; white-space: nowrap; }
td { overflow-wrap: anywhere; min-width: 3em; max-width: 46em; }
details { margin-top: 1.2rem; border-top: 1px solid var(--grid); padding-top: .8rem; }
summary { font-weight: 600; font-size: 1.1rem; cursor: pointer; margin-bottom: .5rem; }
article { background: var(--panel); border-radius: 8px; padding: .9rem 1rem; margin: .7rem 0;
  break-inside: avoid; }
article p { margin: .2rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.prompt { font-weight: 600; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr));
  gap: .8rem 1.5rem; margin-top: .7rem; }
@media print {
  main { max-width: none; padding: 0; }
  body { font-size: 11px; }
  .plots { grid-template-columns: 1fr 1fr; }
}
"""
