"""What is made of the stages: quickstart, report, plan, doctor, bench, the tables of papers, checks for own methods."""
