"""Files to checked tables.

- `tables`: `read_tables`, the interactions, items and users of a run, checked and joined.
- `table_files`: CSV and Parquet files; `table_parts`: folders and patterns of files as one table; `linked_table`:
  several tables as one; `documents`: folders of Markdown and text.
- `event_blocks`: `EventBlocks`, interactions that are larger than memory, checked block by block; `numbering`: numbers
  for values that come in blocks.
- `rows`: rows that arrive over HTTP; `updates`: tables with what a log of live writes adds.
"""
