#!/usr/bin/env bash
# Builds the book into target/book/html: docs/book.sh, with `mdbook` 0.5 on the path (cargo install mdbook --locked).
#
# Pages link to sources, units and the pages beside README. So the book is built of a copy of the repository's files, in which
# every link leads somewhere as it does in the repository; the pages become chapters of their own.
set -euo pipefail
cd "$(dirname "$0")/.."

book=$PWD/target/book
rm -rf "$book"
mkdir -p "$book/source"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents --target-directory "$book/source"
sed 's/"book.css"/"docs\/book.css"/' docs/book.toml >"$book/source/book.toml"
{
    printf '# Summary\n\n[README](README.md)\n'
    sed -e 1d -e 's/](\(.*\.md\))/](docs\/\1)/' docs/SUMMARY.md
    printf '\n# The project\n\n'
    printf -- '- [%s](%s.md)\n' "Security" SECURITY "How the house is built" ARCHITECTURE \
        "Contributing" CONTRIBUTING "Changes" CHANGELOG "The records of the examples" examples/data/README
} >"$book/source/SUMMARY.md"
mdbook build --dest-dir "$book/html" "$book/source"
# mdBook calls a README the index of its folder; links call it by its name.
for page in README examples/data/README; do cp "$book/html/${page/README/index}.html" "$book/html/$page.html"; done
echo "$book/html/index.html"
