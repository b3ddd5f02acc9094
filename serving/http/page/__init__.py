"""The web page of the service, in which a person sees and tries what the API returns.

- `page`: the routes of the page; `query`: the parameters of its address as parameters of the API.
- `columns`: the columns of the catalogue that it shows and filters by; `cards`: items as they are shown; `snippets`: a
  request as lines of curl or Python; `overview`: which model and index are served;
  `map_view`: the map of the items.
- `documents`: the report, the audit, and Swagger UI.
"""
