"""What people look at: reports, charts, the paper's figures, pages in the browser."""
