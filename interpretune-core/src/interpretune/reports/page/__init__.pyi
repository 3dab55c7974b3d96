from interpretune.reports.page.whole_page import Page as Page, write_page as write_page
